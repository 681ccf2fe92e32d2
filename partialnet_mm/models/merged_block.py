# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The merged blocks on a CPU: the same function in fewer operations and with less memory traffic.

One image's map is a matrix, and a 1x1 convolution a product with it. Where the
weights of a block fit into the cache, the map is one of channels by places:
merged_rows.py. Where they do not, and are read from memory for each image, it
is one of places by channels, as attention needs it, and the weights are stored
in the order in which they are read: merged_tokens.py. The layers are not called
one by one: in the small variants that costs more than what they compute.
"""
from torch import Tensor, nn

from .execution import runs_on_cpu
from .gates import GaussianGate
from .merged_rows import run_rows
from .merged_tokens import run_tokens
from .patconv import PartialChannelAttention, PartialSelfAttention

# Weights of an MLP that a core's second-level cache of 2 MiB can hold beside its maps.
CACHE_WEIGHTS = 150_000


def has_matrix_form(mixer: nn.Module, attention: nn.Module | None) -> bool:
    """Whether there is a way through a block here: for the paper's own blocks, not for their ablations.

    Args:
        mixer: Token mixer of the block.
        attention: Its spatial attention.

    Returns:
        bool: Whether it has PAT_ch or PAT_sf, and PAT_sp, each on a part of
        the channels.
    """
    mixes = isinstance(mixer, PartialSelfAttention) or (
        isinstance(mixer, PartialChannelAttention) and isinstance(mixer.gate, GaussianGate))
    return mixes and mixer.attends_part and attention is not None and attention.attends_part


def runs_as_matrices(block: nn.Module, x: Tensor) -> bool:
    """Whether :func:`run_as_matrices` may compute a block.

    Args:
        block: A block with ``has_matrix_form``.
        x: Its input.

    Returns:
        bool: Whether the block is merged and in evaluation mode, nobody
        listens to its parts, which are not called then, and the input is one
        image of :func:`runs_on_cpu`.
    """
    # The size last: a compiler that has been asked for it would make a graph for each.
    if not block.merged or block.training or not runs_on_cpu(x) or x.shape[0] > 1:
        return False
    for part in (block.token_mixer, block.mlp, block.spatial_attention):
        if part._forward_hooks or part._forward_pre_hooks:
            return False
    return True


def run_as_matrices(block: nn.Module, x: Tensor) -> Tensor:
    """Computes a block.

    Args:
        block: A merged block with ``has_matrix_form``.
        x: (1, C, H, W).

    Returns:
        Tensor: (1, C, H, W), contiguous or in ``channels_last``.
    """
    return run_tokens(block, x) if reads_weights_from_memory(block) else run_rows(block, x)


def reads_weights_from_memory(block: nn.Module) -> bool:
    """Whether a merged block is computed by :func:`run_tokens`: with PAT_sf, or too wide for the cache."""
    return hasattr(block.token_mixer, 'qkv') or 2 * block.mlp.conv1.weight.numel() > CACHE_WEIGHTS
