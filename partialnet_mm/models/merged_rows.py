# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A narrow merged block on a CPU, by matrices of channels by places."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Values of an MLP's hidden map that a core's second-level cache of 2 MiB can hold beside all else.
CACHE_VALUES = 450_000


def run_rows(block: nn.Module, x: Tensor) -> Tensor:
    """Computes block v1: PAT_ch, the MLP, PAT_sp and the shortcut.

    Args:
        block: The merged block.
        x: (1, C, H, W).

    Returns:
        Tensor: (1, C, H, W), contiguous.
    """
    mixer = block.token_mixer
    x = x.contiguous()
    _, channels, height, width = x.shape
    split, places = mixer.split_sizes[0], height * width
    rows = x.view(channels, places)
    rest = rows.narrow(0, split, channels - split)
    convolved = F.conv2d(x.narrow(1, 0, split), mixer.conv.weight, padding=1).view(split, places)
    gate = mixer.gate.of_one_map(rest, dim=1).view(-1, 1)
    # A map that is too large for the cache goes through it in pieces: what is made in between does not leave it.
    pieces = -(-places * block.mlp.hidden_channels // (CACHE_VALUES * torch.get_num_threads()))
    if pieces == 1:
        return _add_mlp(block, rows, convolved, rest, gate).view(x.shape)
    out = rows.new_empty(rows.shape)
    step = -(-places // pieces)
    for start in range(0, places, step):
        size = min(step, places - start)
        parts = [part.narrow(1, start, size) for part in (rows, convolved, rest)]
        out.narrow(1, start, size).copy_(_add_mlp(block, *parts, gate))
    return out.view(x.shape)


def _add_mlp(block: nn.Module, rows: Tensor, convolved: Tensor, rest: Tensor, gate: Tensor) -> Tensor:
    """What follows the mixer, (C, places), from (C, places), (C_conv, places), (C_attn, places) and (C_attn, 1)."""
    conv1, conv2 = block.mlp.conv1, block.mlp.conv2
    channels, places = rows.shape
    split = len(convolved)
    mixed = rows.new_empty(channels, places)
    mixed.narrow(0, 0, split).copy_(convolved)
    torch.mul(rest, gate, out=mixed.narrow(0, split, channels - split))
    # To add a bias afterwards is quicker than to have the product begin with it.
    mixed = block.mlp.act(torch.mm(conv1.weight.flatten(1), mixed).add_(conv1.bias.unsqueeze(1)))
    mixed = torch.mm(conv2.weight.flatten(1), mixed).add_(conv2.bias.unsqueeze(1))
    shift = block.spatial_attention.shift.flatten(1).t()
    attended = mixed.narrow(0, 0, len(shift))
    torch.addcmul(shift, attended, F.hardsigmoid(mixed.narrow(0, channels, 1)), out=attended)
    return mixed.narrow(0, 0, channels).add_(rows)
