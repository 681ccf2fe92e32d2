# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""From a searched PartialNet to one of fixed split ratios."""
import re

from torch import Tensor

from .channel_attention import take_channels
from .split_gates import is_legal, partition_channels, ratio_of

#: Ends the name of a layer's gates in a state dict.
GATES = '.split_gates.t'
_BLOCK = re.compile(r'(?:^|\.)stages\.(\d+)\.(\d+)\.token_mixer\.')


def searched_layers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gates of all DPConv layers in a state dict, by the layers' names."""
    return {name[:-len(GATES)]: value for name, value in state_dict.items() if name.endswith(GATES)}


def block_ratios(state_dict: dict[str, Tensor]) -> list[float]:
    """The split ratios in a state dict of a searched PartialNet, one per block, for ``PartialNet(split_ratio=[...])``.

    A block that was not searched has the ratio of its convolution. A ValueError is raised where there are no DPConv
    layers, or some outside PartialNet's blocks.
    """
    layers = searched_layers(state_dict)
    outside = [name for name in layers if not _BLOCK.search(f'{name}.')]
    if not layers or outside:
        raise ValueError('it holds no search of a PartialNet: there is no tensor called stages.{i}.{j}.token_mixer'
                         f'{GATES}' if not layers else f'{outside[0]!r} is a DPConv outside the blocks of a PartialNet')
    ratios: dict[tuple[int, int], float] = {}
    for name, tensor in state_dict.items():
        block = _BLOCK.search(name)
        if block is None:
            continue
        layer, stage_and_block = name[:block.end() - 1], (int(block[1]), int(block[2]))
        if layer in layers:
            ratios[stage_and_block] = ratio_of(layers[layer])
        elif name.endswith('.token_mixer.conv.weight'):
            width = state_dict[f'{layer[:-len("token_mixer")]}mlp.conv1.weight'].shape[1]
            ratios[stage_and_block] = tensor.shape[0] / width
    return [ratios[block] for block in sorted(ratios)]


def fix_ratios(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that remain when learned ratios are fixed, from a state dict of a searched PartialNet.

    A layer searched as 'dpconv' becomes one of 'partial_conv', and the convolution of any token mixer with its ratio;
    'dpconv_ch' becomes 'pat_ch'. The network of these token mixers, the ratios of :func:`block_ratios` and the same
    ``mixer_residual`` then computes what the searched one does in evaluation. By default that is block v1 in stage 4;
    the official code searches with block v2 there. A residual that no token mixer demands is among the tensors. A
    ValueError is raised where the gates of a layer are out of order, so that other channels than the first are
    convolved.
    """
    block_ratios(state_dict)
    layers = searched_layers(state_dict)
    illegal = [name for name, gates in layers.items() if not is_legal(gates)]
    if illegal:
        raise ValueError(f'the gates of {len(illegal)} layers are out of order, so that they convolve other channels '
                         f'than the first: {", ".join(illegal)}. Search on with a larger order_weight, or retrain '
                         'from new weights with the ratios, which are defined all the same')
    fixed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        layer = next((layer for layer in layers if name.startswith(f'{layer}.')), None)
        if layer is None:
            if not name.startswith('objective.'):
                fixed[name] = tensor
            continue
        if name.endswith(GATES):
            continue
        used, rest = partition_channels(layers[layer], len(state_dict[f'{layer}.conv.weight']))
        channels = used if name.startswith(f'{layer}.conv.') else rest
        # Without attended channels PAT_ch has no gate and no norm.
        if channels.start < channels.stop:
            fixed[name] = take_channels(tensor, channels).clone()
    return fixed
