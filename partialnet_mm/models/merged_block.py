# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The inference form: one block for all variants, and the merging of whole models."""
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoint.layouts import OWN_RESIDUAL
from ._folding import (
    Affine,
    conv_of,
    fold_after,
    fold_before,
    norm_affine,
    require_no_hooks,
    require_plain,
    weight_and_bias,
)
from ._layers import PointwiseConv2d
from .patconv import MergedSpatialAttention


class FoldedMLP(NamedTuple):
    """The two 1x1 convolutions of a merged block, and what its spatial attention adds after its gate."""

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    shift: Tensor | None


def fold_mlp(block: nn.Module, mixer_affine: Affine | None, training: bool = False) -> FoldedMLP:
    """Folds all around the MLP of a block into its two convolutions: norms, PAT_sp and layer scale.

    Differentiable in the parameters of the block. Merging stores the result;
    training in the folded form computes it again at each step.

    Args:
        block: The trained :class:`PartialNetBlock`.
        mixer_affine: Scale and shift that the token mixer leaves out, or None.
        training: Whether it is for one step of training. Defaults to False.

    Returns:
        Weights (2C, C, 1, 1) and (C + 1, 2C, 1, 1), whose last row is PAT_sp's
        logit; without PAT_sp (C, 2C, 1, 1), and no shift.

    Raises:
        TypeError: If a norm is no batch norm, or something sits on a layer
            that is folded.
        ValueError: If a norm has no running statistics.
    """
    mlp, attention = block.mlp, block.spatial_attention
    require_no_hooks(mlp, 'mlp')
    weight1, bias1 = weight_and_bias(require_plain(mlp.conv1, 'mlp.conv1'), training)
    affine = norm_affine(mlp.norm, 'mlp.norm', len(weight1), weight1.device, training)
    weight1, bias1 = fold_after(weight1, bias1, affine)
    if mixer_affine is not None:
        weight1, bias1 = fold_before(weight1, bias1, mixer_affine)

    weight2, bias2 = weight_and_bias(require_plain(mlp.conv2, 'mlp.conv2'), training)
    scale = None if block.layer_scale is None else block.layer_scale.flatten().to(weight2.dtype)
    shift = None
    if attention is not None:
        weight2, bias2, shift = attention.fold_into(weight2, bias2, scale, training)
    elif scale is not None:
        weight2, bias2 = fold_after(weight2, bias2, (scale, torch.zeros_like(scale)))
    return FoldedMLP(weight1, bias1, weight2, bias2, shift)


class MergedBlock(nn.Module):
    """A PartialNet block, v1 or v2, with all norms, PAT_sp and the layer scale folded into its convolutions.

    It computes what the trained block does in evaluation mode, for any batch,
    size, device and dtype, and with gradients. The MLP runs as two matrix
    products over all pixels, and feature maps stay in ``channels_last``.

    Args:
        block: The trained :class:`PartialNetBlock`. It stays as it is, and
            shares with this one what has no other form.

    Raises:
        TypeError: If a norm is no batch norm, or something sits on a layer
            that is folded.
        ValueError: If a norm has no running statistics.
    """

    @torch.no_grad()
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.token_mixer, affine = block.token_mixer, None
        if hasattr(block.token_mixer, 'merged'):
            self.token_mixer, affine = block.token_mixer.merged()
        folded, conv1 = fold_mlp(block, affine), block.mlp.conv1
        self.mixer_residual = block.mixer_residual
        if hasattr(block, OWN_RESIDUAL):
            self.register_buffer(OWN_RESIDUAL, block.own_residual)
        channels = conv1.in_channels
        # A container without a forward of its own: PAT_sp needs the hidden layer, too.
        self.mlp = nn.ModuleDict(dict(
            conv1=conv_of(PointwiseConv2d, conv1, folded.weight1, folded.bias1),
            act=block.mlp.act,
            conv2=conv_of(PointwiseConv2d, conv1, folded.weight2[:channels], folded.bias2[:channels])))
        self.spatial_attention = None
        if folded.shift is not None:
            # A convolution of its own: products of C + 1 columns are slow, on GPUs above all.
            logit_conv = conv_of(PointwiseConv2d, conv1, folded.weight2[channels:], folded.bias2[channels:])
            self.spatial_attention = MergedSpatialAttention(logit_conv, folded.shift)
        self.drop_path = block.drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        mixed = self.token_mixer(x)
        if self.mixer_residual:
            x = mixed = x + mixed
        hidden = self.mlp.act(self.mlp.conv1(mixed))
        mixed = self.mlp.conv2(hidden)
        if self.spatial_attention is not None:
            mixed = self.spatial_attention(mixed, hidden)
        # Summed with descending strides: torch.export does not follow other strides of a slice in symbolic sizes.
        return (x.permute(0, 2, 3, 1) + self.drop_path(mixed).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def merge_model(model: nn.Module) -> list[str]:
    """Switches every module of a model that has an inference form to it.

    Such a module has the method ``switch_to_deploy``, as PartialNet does; what
    is inside of it is merged by it. The model is in evaluation mode
    afterwards. Modules that are merged already stay as they are.

    Args:
        model: A classifier, detector, segmentor or backbone, its weights
            loaded.

    Returns:
        Names of the modules, e.g. ['backbone']; '' is the model itself.

    Raises:
        TypeError: If no module can be merged, or the norm of one cannot.
        ValueError: If a norm has no statistics to fold.
    """
    merged: list[str] = []
    for name, module in list(model.named_modules()):
        inside = any(other == '' or name.startswith(f'{other}.') for other in merged)
        if hasattr(module, 'switch_to_deploy') and not inside:
            module.switch_to_deploy()
            merged.append(name)
    if not merged:
        raise TypeError(f'{type(model).__name__} cannot be merged: none of its modules has switch_to_deploy()')
    model.eval()
    return merged
