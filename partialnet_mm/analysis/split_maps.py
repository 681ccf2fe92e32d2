# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a partial attention convolution makes of its two parts of the channels."""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import PartialChannelAttention, PartialConv, PartialSelfAttention, PATConv2d

#: Layers that divide their channels at a fixed place, the convolved part first.
SPLITTERS = (PartialChannelAttention, PartialSelfAttention, PartialConv, PATConv2d)


class SplitMaps(NamedTuple):
    """Maps of one image, (channels, H, W).

    Where the attention covers all channels (Table 3, "F"), the attended part
    is all of them, the convolved ones as their convolution has left them.
    """

    convolved_in: Tensor
    convolved_out: Tensor
    attended_in: Tensor
    attended_out: Tensor
    #: Number of the attended part's first channel in the layer.
    first_attended: int
    #: Of PAT_ch: one for each attended channel, in [0, 1].
    gate: Tensor | None
    #: Of the PAT_sp that follows in the same block: (H, W), in [0, 1].
    spatial_gate: Tensor | None


def splitting_layers(model: nn.Module) -> list[str]:
    """Names of the layers that divide their channels into two parts.

    Args:
        model: Any network.

    Returns:
        list[str]: In the network's order.
    """
    return [name for name, module in model.named_modules() if isinstance(module, SPLITTERS) and module.split_sizes[1]]


def split_maps(model: nn.Module, names: list[str], image: Tensor) -> dict[str, SplitMaps]:
    """Runs a network and takes out what goes in and out of both parts of some layers.

    Args:
        model: Any network, in evaluation mode.
        names: Layers, of :func:`splitting_layers`.
        image: (1, C, H, W), normalized.

    Returns:
        dict[str, SplitMaps]: By the layers' names.

    Raises:
        ValueError: If a layer divides no channels, or the batch is not one
            image.
    """
    known = splitting_layers(model)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f'layer {unknown[0]!r} does not divide its channels into a convolved and an attended part; '
                         f'allowed are {known or "none: this network has no such layer"}')
    if len(image) != 1:
        raise ValueError(f'one image is looked at, got a batch of {len(image)}')
    kept: dict[str, Tensor] = {}
    handles = []

    def keep(key: str, module: nn.Module | None) -> None:
        if module is not None:
            handles.append(module.register_forward_hook(lambda module, args, output: kept.update(
                {f'{key} in': args[0][0].detach().clone(), f'{key} out': output[0].detach().clone()})))

    for name in names:
        layer, block = model.get_submodule(name), model.get_submodule(name.rpartition('.')[0])
        keep(name, layer)
        keep(f'{name} conv', layer.conv)
        keep(f'{name} gate', getattr(layer, 'gate', None))
        # The merged form of PAT_sp has no logit of its own.
        keep(f'{name} spatial', getattr(getattr(block, 'spatial_attention', None), 'logit_conv', None))
    try:
        # Without gradients, layers may call the modules inside of them on pieces of the map.
        with torch.enable_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()

    found = {}
    for name in names:
        layer = model.get_submodule(name)
        convolved_in, rest = kept[f'{name} in'].split(layer.split_sizes)
        convolved_out, output = kept[f'{name} conv out'], kept[f'{name} out']
        if getattr(layer, 'attend_all', False):
            first, attended_in = 0, torch.cat((convolved_out, rest))
        else:
            first, attended_in = layer.split_sizes[0], rest
        gate, logit = kept.get(f'{name} gate out'), kept.get(f'{name} spatial out')
        found[name] = SplitMaps(convolved_in, convolved_out, attended_in, output[first:], first,
                                None if gate is None else gate.flatten(),
                                None if logit is None else F.hardsigmoid(logit)[0])
    return found
