# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A wide merged block on a CPU, by matrices of places by channels."""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def run_tokens(block: nn.Module, x: Tensor) -> Tensor:
    """Computes block v1, or block v2 where its mixer is PAT_sf.

    Args:
        block: The merged block.
        x: (1, C, H, W).

    Returns:
        Tensor: (1, C, H, W), in ``channels_last``.
    """
    mixer = block.token_mixer
    x = x.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    split, places = mixer.split_sizes[0], height * width
    tokens = x.permute(0, 2, 3, 1).view(places, channels)
    rest = tokens.narrow(1, split, channels - split)
    convolved = F.conv2d(x.narrow(1, 0, split), mixer.conv.weight, padding=1)
    convolved = convolved.permute(0, 2, 3, 1).reshape(places, split)
    if hasattr(mixer, 'qkv'):
        attended = mixer.attend_tokens(rest.unsqueeze(0), height, width).squeeze(0)
        mixed = tokens = torch.cat((convolved, attended), dim=1).add_(tokens)
    else:
        mixed = torch.cat((convolved, rest * mixer.gate.of_one_map(rest, dim=0)), dim=1)

    conv1, conv2 = block.mlp.conv1, block.mlp.conv2
    mixed = block.mlp.act(torch.mm(mixed, conv1.weight.flatten(1).t()).add_(conv1.bias))
    mixed = torch.mm(mixed, conv2.weight.flatten(1).t()).add_(conv2.bias)
    shift = block.spatial_attention.shift.flatten()
    attended = mixed.narrow(1, 0, len(shift))
    torch.addcmul(shift, attended, F.hardsigmoid(mixed.narrow(1, channels, 1)), out=attended)
    return torch.add(tokens, mixed.narrow(1, 0, channels)).view(1, height, width, channels).permute(0, 3, 1, 2)


def store_as_read(block: nn.Module) -> None:
    """Stores the weights of a block in the order in which :func:`run_tokens` reads them; shapes and values stay.

    Args:
        block: A merged block on a CPU.
    """
    for weight in _weights(block):
        if weight.dim() == 4 and weight.shape[2] > 1:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        else:
            weight.data = weight.data.flatten(1).t().contiguous().t().view(weight.shape)


def store_as_usual(block: nn.Module) -> None:
    """Undoes :func:`store_as_read`: other devices' convolutions would rearrange the weights, or the maps, each time.

    Args:
        block: A merged block.
    """
    for weight in _weights(block):
        weight.data = weight.data.contiguous()


def _weights(block: nn.Module) -> Iterator[nn.Parameter]:
    mixer, mlp = block.token_mixer, block.mlp
    layers = [mixer.conv, mlp.conv1, mlp.conv2] + ([mixer.qkv, mixer.proj] if hasattr(mixer, 'qkv') else [])
    return (layer.weight for layer in layers)
