# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints in the layout of the paper's official code, turned into this package's and back.

Nothing is guessed and nothing is left over: what the network is built of is
read off the tensors, which gives the name and shape of each tensor that there
must be. One that is missing, unknown or of another shape is an error that
names it.
"""
import re
from collections.abc import Iterable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.pretrained import OFFICIAL_STEM, find_state_dict, shorten
from ..models import PartialNet

#: What trainers and detectors put before the names of a network, one or several times.
WRAPPERS = ('model', 'module', 'backbone')
#: Parts of detectors and segmentors beside the backbone; both layouts call them the same.
DENSE_PARTS = ('neck', 'rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head')
#: The first of the 81 entries of an official position table that a distance, never negative, takes.
FIRST_BUCKET = 40

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
    """How a layout calls things, and what the other one calls them."""
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
    """Turns a checkpoint of the official code into one of this project.

    Args:
        content: A classifier, or a detector or segmentor, or a backbone
            alone: tensors by name, under 'state_dict', under 'model', or as
            the whole dict. All names may begin with 'model.', 'module.' and
            'backbone.', several of them too.

    Returns:
        dict: 'state_dict' with 'backbone.*' and, for a classifier, 'head.*' of
        mmpretrain's StackedLinearClsHead, for others their parts unchanged;
        'meta' with 'backbone', the arguments of :class:`PartialNet` that the
        tensors show. The tensors are copies.

        The hidden layer of the head has a bias in mmpretrain and none in the
        official layout: it is zero. Entries 0 to 39 of position tables, which
        no distance takes, are left out.

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
    """Turns a checkpoint of this project into one of the official code, the reverse of :func:`from_official`.

    Args:
        content: As there, with the names of this project.
        head_bias: Whether a bias of the head's hidden layer is written
            as 'avgpool_pre_head.1.bias'. The official 1x1 convolution has
            none, so that its code must be given one to load that. Defaults to
            False.

    Returns:
        dict: 'state_dict', and 'meta' as of :func:`from_official`. A detector
        or segmentor keeps its parts, beside 'backbone.*'; others have no
        prefix. The tensors are copies. Entries 0 to 39 of position tables are
        zero, as the official code starts them and, since no distance takes
        them, leaves them.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape, with
            the names of all, or if the head's hidden layer has a bias other
            than zero and ``head_bias`` is not set.
    """
    network, tensors, parts = _read(content, _OURS)
    bias = tensors.get(_HIDDEN_BIAS)
    if bias is not None and not head_bias:
        if bias.any():
            raise ValueError(f'{_HIDDEN_BIAS} is up to {bias.abs().max():.3g}: the official classifier has no bias '
                             "there. head_bias (--head-bias) writes it as 'avgpool_pre_head.1.bias', for a code "
                             'that was given one')
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
    conv_channels: tuple[tuple[int, ...], ...]  # of each block of each stage
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

        conv_channels, mixers = [], []
        for stage in range(PartialNet.num_stages):
            blocks = {name.split('.')[2] for name in tensors if name.startswith(f'stages.{stage}.')}
            if not blocks:
                raise ValueError(f'stage {stage + 1} has no block')
            conv_channels.append(tuple(rows(f'stages.{stage}.{j}.token_mixer.conv.weight')
                                       for j in range(len(blocks))))
            attention = rf'stages\.{stage}\.\d+\.token_mixer\.'
            mixers.append('pat_ch' if has(attention + 'gate') else
                          'pat_sf' if has(attention + '(qkv|proj|position_bias)') else 'partial_conv')
        stem = tensors[_OURS.stem]
        return cls(
            in_channels=stem.shape[1] if stem.dim() == 4 else 0,
            embed_dim=rows(_OURS.stem),
            depths=tuple(map(len, conv_channels)),
            token_mixers=tuple(mixers),
            conv_channels=tuple(conv_channels),
            num_heads=max((rows(name) for name in tensors if name.endswith(_TABLE)), default=None),
            spatial_attention='partial' if has(r'.*\.spatial_attention\.') else 'none',
            out_norms=tuple(i for i in range(PartialNet.num_stages) if has(rf'norm{i}\.')),
            head=(rows(_HIDDEN), rows('head.layers.1.fc.weight')) if has(r'head\.') else None)

    def shapes(self) -> dict[str, _Shape]:
        """Shape of each tensor that the network has, by our names."""
        shapes: dict[str, _Shape] = {}

        def norm(name: str, channels: int, leaves: Iterable[str] = _BATCH_NORM) -> None:
            shapes.update({f'{name}.{leaf}': () if leaf == 'num_batches_tracked' else (channels, ) for leaf in leaves})

        before = self.in_channels
        for stage, blocks in enumerate(self.conv_channels):
            width = self.embed_dim * 2**stage
            kernel = 2 if stage else 4
            shapes[f'downsample_layers.{stage}.conv.weight'] = (width, before, kernel, kernel)
            norm(f'downsample_layers.{stage}.norm', width)
            before = width
            for j, convolved in enumerate(blocks):
                block, mixer = f'stages.{stage}.{j}', f'stages.{stage}.{j}.token_mixer'
                if not 0 < convolved < width:  # missing, or an error in any case: the paper's own
                    convolved = width // 4
                attended = width - convolved
                shapes[f'{mixer}.conv.weight'] = (convolved, convolved, 3, 3)
                if self.token_mixers[stage] == 'pat_ch':
                    shapes[f'{mixer}.gate.conv.weight'] = (attended, attended, 1, 2)
                    norm(f'{mixer}.gate.norm', attended)
                    norm(f'{mixer}.norm', attended)
                elif self.token_mixers[stage] == 'pat_sf':
                    norm(f'{mixer}.norm', attended, ('weight', 'bias'))
                    shapes[f'{mixer}.qkv.weight'] = (3 * attended, attended)
                    # As PartialSelfAttention chooses them.
                    heads = next(n for n in range(self.num_heads or 1, 0, -1) if attended % n == 0)
                    shapes[f'stages.{stage}.{j}.{_TABLE}'] = (heads, FIRST_BUCKET + 1)
                    shapes[f'{mixer}.proj.weight'] = (attended, attended)
                    shapes[f'{mixer}.proj.bias'] = (attended, )
                shapes[f'{block}.mlp.conv1.weight'] = (2 * width, width, 1, 1)
                norm(f'{block}.mlp.norm', 2 * width)
                shapes[f'{block}.mlp.conv2.weight'] = (width, 2 * width, 1, 1)
                if self.spatial_attention == 'partial':
                    half, rest = width // 2, width - width // 2
                    shapes[f'{block}.spatial_attention.logit_conv.weight'] = (1, half, 1, 1)
                    norm(f'{block}.spatial_attention.attended_norm', half)
                    norm(f'{block}.spatial_attention.rest_norm', rest)
                    shapes[f'{block}.spatial_attention.rest_conv.weight'] = (rest, rest, 1, 1)
        for stage in self.out_norms:
            norm(f'norm{stage}', self.embed_dim * 2**stage)
        if self.head is not None:
            hidden, classes = self.head
            shapes.update({_HIDDEN: (hidden, before), _HIDDEN_BIAS: (hidden, ),
                           'head.layers.1.fc.weight': (classes, hidden), 'head.layers.1.fc.bias': (classes, )})
        return shapes

    def backbone_cfg(self) -> dict:
        """Arguments of :class:`PartialNet` that build it, those that differ from the defaults.

        For sizes that are no variant's, ``arch`` is a dict without
        ``act_cfg``: no tensor shows the activation.
        """
        sizes = dict(embed_dim=self.embed_dim, depths=self.depths, num_heads=self.num_heads)
        cfg = dict(type='PartialNet', arch=next(
            (arch for arch, settings in PartialNet.arch_settings.items()
             if all(value in (None, settings[key]) for key, value in sizes.items())), sizes))
        ratios = [_ratio(convolved, self.embed_dim * 2**stage)
                  for stage, blocks in enumerate(self.conv_channels) for convolved in blocks]
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
    """A split ratio that PartialNet, which rounds down, turns into so many channels."""
    ratio = convolved / width
    return ratio if int(width * ratio) == convolved else (convolved + 0.5) / width


def _read(content: dict, layout: _Layout) -> tuple[_Network, dict[str, Tensor], dict[str, Tensor]]:
    """The network, its tensors by our names in the shapes of their layout, and the parts beside a backbone."""
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
    _check(network.shapes(), tensors, unknown, layout)
    return network, tensors, parts


def _find_prefix(state: dict[str, Tensor], layout: _Layout) -> str:
    found = [name[:-len(layout.stem)] for name in state if name.endswith(layout.stem)]
    if len(found) == 1 and re.fullmatch(rf'(({"|".join(WRAPPERS)})\.)*', found[0]):
        return found[0]
    if found:
        raise ValueError(f'{", ".join(prefix + layout.stem for prefix in found)}: one network is needed, behind any of '
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
