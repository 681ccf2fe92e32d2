# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints converted from the layout of the paper's official code to that of this package, and back.

The tensors show what the network is built of. That network is built without
memory, and gives the name and shape of each tensor. One that is missing,
unknown or of another shape is an error that names it.
"""
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.pretrained import OFFICIAL_STEM, find_state_dict, shorten
from ..models import PartialNet

#: Prefixes that trainers and detectors add to the names of a network, one or several of them.
WRAPPERS = ('model', 'module', 'backbone')
#: Modules of detectors and segmentors beside the backbone; their names are the same in both layouts.
DENSE_PARTS = ('neck', 'rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head')
#: The first of the 81 entries of an official position table that is used: distances are never negative.
FIRST_BUCKET = 40
#: Most blocks of a stage, and most channels of the stem.
MAX_DEPTH, MAX_WIDTH = 100, 1 << 14

_Shape = tuple[int, ...]
_BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
_TABLE = 'token_mixer.position_bias.table'
_HIDDEN, _HIDDEN_BIAS = 'head.layers.0.fc.weight', 'head.layers.0.fc.bias'


def _leaves(official: str, ours: str, leaves: Iterable[str] = ('weight', )) -> dict[str, str]:
    return {f'{official}.{leaf}': f'{ours}.{leaf}' for leaf in leaves}


#: Official name and ours, of what is in a block.
_IN_BLOCK = {
    **_leaves('spatial_mixing.partial_conv3', 'token_mixer.conv'),
    **_leaves('spatial_mixing.attn.cfc1', 'token_mixer.gate.conv'),
    **_leaves('spatial_mixing.attn.bn', 'token_mixer.gate.norm', _BATCH_NORM),
    **_leaves('spatial_mixing.norm', 'token_mixer.norm', _BATCH_NORM),
    **_leaves('spatial_mixing.attn.qkv', 'token_mixer.qkv'),
    **_leaves('spatial_mixing.attn.proj', 'token_mixer.proj', ('weight', 'bias')),
    'spatial_mixing.attn.rpe_k.lookup_table_bias': _TABLE,
    **_leaves('mlp.0', 'mlp.conv1'),
    **_leaves('mlp.1', 'mlp.norm', _BATCH_NORM),
    **_leaves('mlp.3', 'mlp.conv2'),
    **_leaves('mlp.4.conv_attn', 'spatial_attention.logit_conv'),
    **_leaves('mlp.4.norm', 'spatial_attention.attended_norm', _BATCH_NORM),
    **_leaves('mlp.4.norm2', 'spatial_attention.rest_norm', _BATCH_NORM),
    **_leaves('mlp.4.conv', 'spatial_attention.rest_conv'),
}
#: The same of what is outside blocks.
_OUTSIDE = {
    OFFICIAL_STEM: 'downsample_layers.0.conv.weight',
    **_leaves('patch_embed.norm', 'downsample_layers.0.norm', _BATCH_NORM),
    # The official list of stages has a merging layer between each two.
    **{k: v for i in (1, 2, 3) for k, v in (
        *_leaves(f'stages.{2 * i - 1}.reduction', f'downsample_layers.{i}.conv').items(),
        *_leaves(f'stages.{2 * i - 1}.norm', f'downsample_layers.{i}.norm', _BATCH_NORM).items())},
    **{k: v for i in range(4) for k, v in _leaves(f'norm{2 * i}', f'norm{i}', _BATCH_NORM).items()},
    'avgpool_pre_head.1.weight': _HIDDEN,
    'avgpool_pre_head.1.bias': _HIDDEN_BIAS,
    **_leaves('head', 'head.layers.1.fc', ('weight', 'bias')),
}


class _Layout(NamedTuple):
    """The names of a layout, and those of the other one."""
    title: str
    stem: str
    outside: dict[str, str]
    in_block: dict[str, str]
    block: str  # pattern of a name in a block
    other_block: str
    other_step: float  # from this layout's number of a stage to the other's

    def other_name(self, name: str) -> str | None:
        """The name in the other layout, None if this layout has no such name."""
        match = re.fullmatch(self.block, name)
        if match is None or match['layer'] not in self.in_block:
            return self.outside.get(name)
        return self.other_block.format(int(int(match['stage']) * self.other_step), match['block'],
                                       self.in_block[match['layer']])


_OFFICIAL = _Layout('the official layout', OFFICIAL_STEM, _OUTSIDE, _IN_BLOCK,
                    r'stages\.(?P<stage>[0246])\.blocks\.(?P<block>0|[1-9]\d*)\.(?P<layer>.+)', 'stages.{}.{}.{}', 0.5)
_OURS = _Layout("this project's layout", _OUTSIDE[OFFICIAL_STEM], {v: k for k, v in _OUTSIDE.items()},
                {v: k for k, v in _IN_BLOCK.items()},
                r'stages\.(?P<stage>[0-3])\.(?P<block>0|[1-9]\d*)\.(?P<layer>.+)', 'stages.{}.blocks.{}.{}', 2)


def from_official(content: dict) -> dict:
    """Converts a checkpoint of the official code into one of this project.

    Args:
        content: A classifier, or a detector or segmentor, or a backbone
            alone: tensors by name, under 'state_dict', under 'model', or as
            the whole dict. All names may begin with 'model.', 'module.' and
            'backbone.', several of them too.

    Returns:
        'state_dict' with 'backbone.*' and, for a classifier, 'head.*' of
        mmpretrain's StackedLinearClsHead, for others their other modules
        unchanged; 'meta' with 'backbone', the arguments of
        :class:`PartialNet` that the tensors show. The tensors are copies.

        The hidden layer of the head has a bias in mmpretrain and none in the
        official layout: it is zero. Entries 0 to 39 of position tables, which
        are never used, are left out.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape, with
            the names of all.
    """
    network, tensors, parts = _read(content, _OFFICIAL)
    converted = {}
    for name, shape in network.shapes().items():
        if name == _HIDDEN_BIAS and name not in tensors:
            value = tensors[_HIDDEN].new_zeros(shape)
        else:
            value = tensors[name][:, FIRST_BUCKET:] if name.endswith(_TABLE) else tensors[name]
        converted[name if name.startswith('head.') else f'backbone.{name}'] = value.detach().reshape(shape).clone()
    return dict(state_dict={**converted, **parts}, meta=dict(backbone=network.backbone_cfg()))


def to_official(content: dict, head_bias: bool = False) -> dict:
    """Converts a checkpoint of this project into one of the official code, the reverse of :func:`from_official`.

    Args:
        content: As there, with the names of this project.
        head_bias: Whether a bias of the head's hidden layer is written
            as 'avgpool_pre_head.1.bias'. The official 1x1 convolution has no
            bias, so its code must be changed to load one. Defaults to False.

    Returns:
        'state_dict', and 'meta' as of :func:`from_official`. A detector or
        segmentor keeps its other modules, beside 'backbone.*'; others have no
        prefix. The tensors are copies. Entries 0 to 39 of position tables are
        zero: the official code starts them so, and never uses them.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape, with
            the names of all, or if the head's hidden layer has a bias other
            than zero and ``head_bias`` is not set.
    """
    network, tensors, parts = _read(content, _OURS)
    bias = tensors.get(_HIDDEN_BIAS)
    if bias is not None and not head_bias:
        if bias.any():
            raise ValueError(f'{_HIDDEN_BIAS} is up to {bias.abs().max():.3g}: the official classifier has no such '
                             "bias. head_bias (--head-bias) writes it as 'avgpool_pre_head.1.bias', for code that "
                             'was changed to load it')
        del tensors[_HIDDEN_BIAS]
    prefix = 'backbone.' if parts else ''
    converted = {}
    for name, value in tensors.items():
        if name.endswith(_TABLE):
            value = F.pad(value, (FIRST_BUCKET, 0))
        converted[prefix + _OURS.other_name(name)] = value.detach().reshape(_official_shape(name, value.shape)).clone()
    return dict(state_dict={**converted, **parts}, meta=dict(backbone=network.backbone_cfg()))


class _Network(NamedTuple):
    """What a network is built of."""
    in_channels: int
    embed_dim: int
    depths: tuple[int, ...]
    token_mixers: tuple[str, ...]  # of each stage
    conv_channels: tuple[int, ...]  # of each block
    num_heads: int | None
    spatial_attention: str
    out_norms: tuple[int, ...]  # stages with a norm of their own
    head: tuple[int, int] | None  # hidden and output channels

    @classmethod
    def read(cls, tensors: dict[str, Tensor]) -> '_Network':
        """Reads it off tensors by our names, of which some may be missing or wrong."""

        def rows(name: str) -> int:
            return tensors[name].shape[0] if name in tensors and tensors[name].dim() else 0

        def has(pattern: str) -> bool:
            return any(re.match(pattern, name) for name in tensors)

        stem = tensors[_OURS.stem]
        # The width that most tensors have, so that one of another shape is reported as such.
        widths = [rows(name) for name in (_OURS.stem, *(f'downsample_layers.0.norm.{leaf}' for leaf in _BATCH_NORM))]
        embed_dim = Counter(filter(None, widths)).most_common(1)[0][0] if any(widths) else 0
        if not 0 < embed_dim <= MAX_WIDTH:
            raise ValueError(f'its stem has {embed_dim} channels')
        depths, conv_channels, mixers = [], [], []
        for stage in range(PartialNet.num_stages):
            depth = len({name.split('.')[2] for name in tensors if name.startswith(f'stages.{stage}.')})
            if not 0 < depth <= MAX_DEPTH:
                raise ValueError(f'stage {stage + 1} has {depth or "no"} block{"s" * (depth > 1)}')
            depths.append(depth)
            width = embed_dim * 2**stage
            for j in range(depth):
                convolved = rows(f'stages.{stage}.{j}.token_mixer.conv.weight')
                # What is missing or cannot be is an error in any case, reported against the paper's own ratio.
                conv_channels.append(convolved if 0 < convolved < width else width // 4)
            attention = rf'stages\.{stage}\.\d+\.token_mixer\.'
            mixers.append('pat_ch' if has(attention + 'gate') else
                          'pat_sf' if has(attention + '(qkv|proj|position_bias)') else 'partial_conv')
        return cls(
            in_channels=stem.shape[1] if stem.dim() == 4 else 3,
            embed_dim=embed_dim,
            depths=tuple(depths),
            token_mixers=tuple(mixers),
            conv_channels=tuple(conv_channels),
            num_heads=max((min(rows(name), embed_dim) for name in tensors if name.endswith(_TABLE)), default=None),
            spatial_attention='partial' if has(r'.*\.spatial_attention\.') else 'none',
            out_norms=tuple(i for i in range(PartialNet.num_stages) if has(rf'norm{i}\.')),
            head=(rows(_HIDDEN), rows('head.layers.1.fc.weight')) if has(r'head\.') else None)

    def shapes(self) -> dict[str, _Shape]:
        """Shape of each tensor that the network has, by our names.

        Raises:
            ValueError: If there is no such network.
        """
        cfg = {name: value for name, value in self.backbone_cfg().items() if name != 'type'}
        if isinstance(cfg['arch'], dict):
            cfg['arch'] = dict(cfg['arch'], num_heads=self.num_heads or 1, act_cfg=dict(type='ReLU'))
        with torch.device('meta'):  # names and shapes alone
            backbone = PartialNet(**cfg)
        shapes = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
        if self.head is not None:
            hidden, classes = self.head
            shapes.update({_HIDDEN: (hidden, backbone.channels[-1]), _HIDDEN_BIAS: (hidden, ),
                           'head.layers.1.fc.weight': (classes, hidden), 'head.layers.1.fc.bias': (classes, )})
        return shapes

    def backbone_cfg(self) -> dict:
        """Arguments of :class:`PartialNet` that build it, those that differ from the defaults.

        For sizes of no variant, ``arch`` is a dict without ``act_cfg``: no
        tensor shows the activation.
        """
        sizes = dict(embed_dim=self.embed_dim, depths=self.depths, num_heads=self.num_heads)
        cfg = dict(type='PartialNet', arch=next(
            (arch for arch, settings in PartialNet.arch_settings.items()
             if all(value in (None, settings[key]) for key, value in sizes.items())), sizes))
        widths = [self.embed_dim * 2**stage for stage, depth in enumerate(self.depths) for _ in range(depth)]
        ratios = list(map(_ratio, self.conv_channels, widths))
        given = dict(
            in_channels=self.in_channels,
            split_ratio=ratios[0] if len(set(ratios)) == 1 else ratios,
            out_indices=self.out_norms or (3, ),
            token_mixers=self.token_mixers,
            spatial_attention=self.spatial_attention)
        defaults = dict(in_channels=3, split_ratio=0.25, out_indices=(3, ),
                        token_mixers=('pat_ch', 'pat_ch', 'pat_ch', 'pat_sf'), spatial_attention='partial')
        cfg.update({key: value for key, value in given.items() if value != defaults[key]})
        if len(self.out_norms) == 1:
            cfg['out_norm'] = True
        return cfg


def _ratio(convolved: int, width: int) -> float:
    """A split ratio from which PartialNet, which rounds down, gets so many channels."""
    ratio = convolved / width
    return ratio if int(width * ratio) == convolved else (convolved + 0.5) / width


def _read(content: dict, layout: _Layout) -> tuple[_Network, dict[str, Tensor], dict[str, Tensor]]:
    """The network, its tensors by our names in the shapes of their layout, and the tensors beside a backbone."""
    state = find_state_dict(content)
    wrong = [f'{name} is a {type(value).__name__}' for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f'not tensors ({len(wrong)}): {shorten(wrong)}')
    prefix = _find_prefix(state, layout)
    outer = prefix[:-len('backbone.')] if prefix.endswith('backbone.') else None
    tensors: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, value in state.items():
        # The classifier's head is beside the backbone in mmpretrain, and one of its layers in the official code.
        if layout is _OURS and outer is not None and name.startswith(f'{outer}head.'):
            own = name[len(outer):]
        else:
            own = name[len(prefix):] if name.startswith(prefix) else None
        other = None if own is None else layout.other_name(own)
        if other is not None:
            tensors[other if layout is _OFFICIAL else own] = value
        elif outer is not None and name[len(outer):].split('.')[0] in DENSE_PARTS and name.startswith(outer):
            parts[name[len(outer):]] = value.detach().clone()
        else:
            unknown.append(name)
    network = _Network.read(tensors)
    try:
        shapes = network.shapes()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'no PartialNet in {layout.title}: {error}') from error
    _check(shapes, tensors, unknown, layout)
    return network, tensors, parts


def _find_prefix(state: dict[str, Tensor], layout: _Layout) -> str:
    found = [name[:-len(layout.stem)] for name in state if name.endswith(layout.stem)]
    if len(found) == 1 and re.fullmatch(rf'(({"|".join(WRAPPERS)})\.)*', found[0]):
        return found[0]
    if found:
        raise ValueError(f'{", ".join(prefix + layout.stem for prefix in found)}: one network is needed, with any of '
                         f'the prefixes {", ".join(f"{wrapper}." for wrapper in WRAPPERS)} or none')
    other = _OURS if layout is _OFFICIAL else _OFFICIAL
    hint = f': it is in {other.title}' if any(name.endswith(other.stem) for name in state) else ''
    raise ValueError(f'not in {layout.title}{hint}; it has no {layout.stem}, its tensors begin with '
                     f'{shorten(list(state), 3) or "nothing"}')


def _official_shape(name: str, shape: _Shape) -> _Shape:
    """The official shape of a tensor by our name, but for the length of position tables."""
    return (*shape, 1, 1) if name == _HIDDEN else tuple(shape)


def _check(shapes: dict[str, _Shape], tensors: dict[str, Tensor], unknown: list[str], layout: _Layout) -> None:
    official = layout is _OFFICIAL

    def called(name: str) -> str:
        return _OURS.other_name(name) if official else name

    def shape_in_layout(name: str) -> _Shape:
        if not official:
            return shapes[name]
        if name.endswith(_TABLE):
            return (shapes[name][0], 2 * FIRST_BUCKET + 1)
        return _official_shape(name, shapes[name])

    missing = [called(name) for name in shapes if name not in tensors and not (official and name == _HIDDEN_BIAS)]
    unknown = unknown + [called(name) for name in tensors if name not in shapes]
    misshapen = [f'{called(name)} is {tuple(tensors[name].shape)} and not {shape_in_layout(name)}'
                 for name in shapes if name in tensors and tuple(tensors[name].shape) != shape_in_layout(name)]
    problems = [f'{kind} ({len(names)}): {shorten(names)}' for kind, names in (
        ('missing', missing), ('unknown', unknown), ('of another shape', misshapen)) if names]
    if problems:
        raise ValueError(f'no PartialNet in {layout.title}. {". ".join(problems)}. Merged (deploy) forms, layer scale, '
                         'and mixers and gates that are not the paper\'s own are not converted')
