# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints converted from the layouts of other code to that of this package, and back.

Other code is the official code of PartialNet, FasterNet's, which has the same layout, and timm's FasterNet. The tensors
show what the network is built of, except the block of stage 4 where that has no attention. That network is built
without memory, and gives the name and shape of each tensor. One that is missing, unknown or of another shape is an
error that names it.
"""
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoint.layouts import (
    BLOCK_QUESTION,
    DENSE_PARTS,
    FIRST_BUCKET,
    FOREIGN_STEM,
    HIDDEN,
    HIDDEN_BIAS,
    OFFICIAL,
    OWN_RESIDUAL,
    STEM,
    TABLE,
    TIMM,
    Layout,
    Structure,
    find_prefix,
    foreign_layout,
    foreign_value,
    own_value,
    read_foreign,
)
from ..checkpoint.pretrained import find_state_dict, shorten
from ..models import PartialNet

#: Other code's layouts by name.
LAYOUTS = dict(official=OFFICIAL, timm=TIMM)
#: Blocks of stage 4, and whether its token mixer has a residual of its own.
BLOCKS = dict(v1=False, v2=True)
#: Most blocks of a stage, and most channels of the stem.
MAX_DEPTH, MAX_WIDTH = 100, 1 << 14
#: Width, blocks and activation of FasterNet's variants, as its own code has them.
FASTERNETS = dict(
    t0=(40, (1, 2, 8, 2), 'GELU'), t1=(64, (1, 2, 8, 2), 'GELU'), t2=(96, (1, 2, 8, 2), 'ReLU'),
    s=(128, (1, 2, 13, 2), 'ReLU'), m=(144, (3, 4, 18, 3), 'ReLU'), l=(192, (3, 4, 18, 3), 'ReLU'))

_Shape = tuple[int, ...]
_OURS = "this project's layout"
_MIXERS = dict(channel='pat_ch', self='pat_sf', none='partial_conv')
_BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


def from_official(content: dict, stage4_block: str | None = None) -> dict:
    """Converts a checkpoint of other code into one of this project.

    Args:
        content: A classifier, or a detector or segmentor, or a backbone
            alone: tensors by name, under 'state_dict', under 'model', or as
            the whole dict. All names may begin with 'model.', 'module.' and
            'backbone.', several of them too.
        stage4_block: 'v1' or 'v2', the block that the other code computes in
            stage 4. Needed where its token mixers have no attention and the
            layout is the official one. Defaults to None.

    Returns:
        'state_dict' with 'backbone.*' and, for a classifier, 'head.*' of
        mmpretrain's StackedLinearClsHead, for others their other modules
        unchanged; 'meta' with 'backbone', the arguments of
        :class:`PartialNet` that the tensors show. The tensors are copies.

        The hidden layer of the head has a bias in mmpretrain and none in
        other code: it is zero. Entries 0 to 39 of position tables, which are
        never used, are left out.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape, with
            the names of all; if ``stage4_block`` is needed and missing, or
            contradicts the tensors.
    """
    state = _tensors_of(content)
    layout = foreign_layout(state) or OFFICIAL
    network, tensors, parts = _read(state, layout, stage4_block)
    converted = {}
    for name, shape in network.shapes().items():
        if name.endswith(f'.{OWN_RESIDUAL}'):
            value = torch.tensor(int(network.residuals[-1]))
        elif name == HIDDEN_BIAS and name not in tensors:
            value = tensors[HIDDEN].new_zeros(shape)
        else:
            value = own_value(name, tensors[name])
        converted[name if name.startswith('head.') else f'backbone.{name}'] = value.detach().reshape(shape).clone()
    return dict(state_dict={**converted, **parts}, meta=dict(backbone=network.backbone_cfg()))


def to_official(content: dict, head_bias: bool = False, stage4_block: str | None = None,
                layout: str = 'official') -> dict:
    """Converts a checkpoint of this project into one of other code, the reverse of :func:`from_official`.

    Args:
        content: As there, with the names of this project.
        head_bias: Whether a bias of the head's hidden layer is written. The
            1x1 convolution of other code has no bias, so that code must be
            changed to load one. Defaults to False.
        stage4_block: 'v1' or 'v2', the block that the code computes in stage
            4 that is going to read the file. Needed where its token mixers
            have no attention and the layout is the official one. Defaults to
            None.
        layout: 'official' or 'timm'. Defaults to 'official'.

    Returns:
        'state_dict', and 'meta' as of :func:`from_official`. A detector or
        segmentor keeps its other modules, beside 'backbone.*'; others have no
        prefix. The tensors are copies. Entries 0 to 39 of position tables are
        zero: the official code starts them so, and never uses them.

    Raises:
        ValueError: If a tensor is missing, unknown or of another shape, with
            the names of all, or has no name in the layout; if the head's
            hidden layer has a bias other than zero and ``head_bias`` is not
            set; if ``stage4_block`` is needed and missing, or is not the
            network's.
    """
    target = LAYOUTS[layout]
    network, tensors, parts = _read(_tensors_of(content), None, stage4_block, target)
    bias = tensors.get(HIDDEN_BIAS)
    if bias is not None and not head_bias:
        if bias.any():
            raise ValueError(f'{HIDDEN_BIAS} is up to {bias.abs().max():.3g}: the classifier of {target.title} has no '
                             f'such bias. head_bias (--head-bias) writes it as {target.foreign_name(HIDDEN_BIAS)!r}, '
                             'for code that was changed to load it')
        del tensors[HIDDEN_BIAS]
    names = {name: target.foreign_name(name) for name in tensors if not name.endswith(f'.{OWN_RESIDUAL}')}
    nameless = [name for name, other in names.items() if other is None]
    if nameless:
        raise ValueError(f'{target.title} has no names for {len(nameless)} tensors: {shorten(nameless)}')
    for stage, (mixer, residual) in enumerate(zip(network.token_mixers, network.residuals)):
        stated = stage == 3 and mixer == 'partial_conv' and target is OFFICIAL
        if residual != (mixer == 'pat_sf') and not stated:
            raise ValueError(f'the token mixers {mixer!r} of its stage {stage + 1} have {"a" if residual else "no"} '
                             f'residual (mixer_residual): {target.title} has no such block')
    prefix = 'backbone.' if parts else ''
    converted = {prefix + other: foreign_value(name, tensors[name]).detach().clone() for name, other in names.items()}
    return dict(state_dict={**converted, **parts}, meta=dict(backbone=network.backbone_cfg()))


def describe(backbone: dict) -> str:
    """The arguments of ``meta['backbone']`` as a call, with the variant and the options of a command line below it."""
    given = {name: value for name, value in backbone.items() if name != 'type'}
    arch = given['arch']
    lines = [f'PartialNet({", ".join(f"{name}={value!r}" for name, value in given.items())})']
    if isinstance(arch, dict) and 'act_cfg' not in arch:
        lines.append('These are sizes of no variant. No tensor shows the activation: set act_cfg in arch.')
    elif isinstance(arch, dict):
        size = next(size for size, known in FASTERNETS.items() if known[:2] == (arch['embed_dim'], arch['depths']))
        lines.append(f'This is FasterNet-{size.upper()}: configs/ablations/fasternet_{size}_in1k.py')
    options = command_line_options(backbone)
    if options != f'model.backbone.arch={arch}':
        lines.append(f'On a command line: --cfg-options {options}')
    return '\n'.join(lines)


def command_line_options(backbone: dict) -> str:
    """The same arguments, but for the returned stages, as values of ``--cfg-options``."""
    options = []
    for name, value in backbone.items():
        if name in ('type', 'out_indices', 'out_norm'):
            continue
        if isinstance(value, dict):  # instead of the name that the config has
            options.append(f'model.backbone.{name}._delete_=True')
        options += _flat_options(f'model.backbone.{name}', value)
    return ' '.join(options)


def _flat_options(name: str, value: object) -> list[str]:
    if isinstance(value, dict):
        return [option for key, item in value.items() for option in _flat_options(f'{name}.{key}', item)]
    if isinstance(value, (list, tuple)):
        return [f'"{name}=({",".join(map(str, value))})"']
    return [f'{name}={value}']


class _Network(NamedTuple):
    """What a network is built of."""
    in_channels: int
    embed_dim: int
    depths: tuple[int, ...]
    token_mixers: tuple[str, ...]  # of each stage
    residuals: tuple[bool, ...]  # whether the mixers of each stage have one of their own
    conv_channels: tuple[int, ...]  # of each block
    num_heads: int | None
    spatial_attention: str
    out_norms: tuple[int, ...]  # stages with a norm of their own
    head: tuple[int, int] | None  # hidden and output channels

    @classmethod
    def read(cls, tensors: dict[str, Tensor], stage4_residual: bool | None) -> '_Network':
        """Reads it off tensors by our names, of which some may be missing or wrong."""

        def rows(name: str) -> int:
            return tensors[name].shape[0] if name in tensors and tensors[name].dim() else 0

        def has(start: str) -> bool:
            return any(name.startswith(start) for name in tensors)

        structure, stem = Structure.read(tensors), tensors[STEM]
        # The width that most tensors have, so that one of another shape is reported as such.
        widths = [rows(name) for name in (STEM, *(f'downsample_layers.0.norm.{leaf}' for leaf in _BATCH_NORM))]
        embed_dim = Counter(filter(None, widths)).most_common(1)[0][0] if any(widths) else 0
        if not 0 < embed_dim <= MAX_WIDTH:
            raise ValueError(f'its stem has {embed_dim} channels')
        conv_channels = []
        for stage, depth in enumerate(structure.depths):
            if not 0 < depth <= MAX_DEPTH:
                raise ValueError(f'stage {stage + 1} has {depth or "no"} block{"s" * (depth > 1)}')
            width = embed_dim * 2**stage
            for j in range(depth):
                convolved = rows(f'stages.{stage}.{j}.token_mixer.conv.weight')
                # What is missing or cannot be is an error in any case, reported against the paper's own ratio.
                conv_channels.append(convolved if 0 < convolved <= width else width // 4)
        residuals = structure.residuals
        if stage4_residual is not None:
            residuals = (*residuals[:-1], stage4_residual)
        return cls(
            in_channels=stem.shape[1] if stem.dim() == 4 else 3,
            embed_dim=embed_dim,
            depths=structure.depths,
            token_mixers=tuple(_MIXERS[kind] for kind in structure.attentions),
            residuals=residuals,
            conv_channels=tuple(conv_channels),
            num_heads=None if structure.num_heads is None else min(max(structure.num_heads, 1), embed_dim),
            spatial_attention='partial' if structure.spatial_attention else 'none',
            out_norms=tuple(i for i in range(PartialNet.num_stages) if has(f'norm{i}.')),
            head=(rows(HIDDEN), rows('head.layers.1.fc.weight')) if has('head.') else None)

    def shapes(self) -> dict[str, _Shape]:
        """Shape of each tensor that the network has, by our names.

        Raises:
            ValueError: If there is no such network.
        """
        cfg = {name: value for name, value in self.backbone_cfg().items() if name != 'type'}
        if isinstance(cfg['arch'], dict):
            cfg['arch'] = dict(dict(act_cfg=dict(type='ReLU')), **cfg['arch'])
        with torch.device('meta'):  # names and shapes alone
            backbone = PartialNet(**cfg)
        shapes = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
        if self.head is not None:
            hidden, classes = self.head
            shapes.update({HIDDEN: (hidden, backbone.channels[-1]), HIDDEN_BIAS: (hidden, ),
                           'head.layers.1.fc.weight': (classes, hidden), 'head.layers.1.fc.bias': (classes, )})
        return shapes

    def backbone_cfg(self) -> dict:
        """Arguments of :class:`PartialNet` that build it, those that differ from the defaults.

        For sizes of no variant, of PartialNet or of FasterNet, ``arch`` is a dict without ``act_cfg``: no tensor shows
        the activation.
        """
        sizes = (self.embed_dim, self.depths)
        cfg: dict = dict(type='PartialNet')
        arch = next((arch for arch, settings in PartialNet.arch_settings.items()
                     if sizes == (settings['embed_dim'], settings['depths'])), None)
        if arch is None:
            # A network without self-attention has no heads, and an arch needs their number all the same.
            cfg['arch'] = dict(embed_dim=self.embed_dim, depths=self.depths, num_heads=self.num_heads or 1)
            activation = next((act for *known, act in FASTERNETS.values() if sizes == tuple(known)), None)
            if activation and set(self.token_mixers) == {'partial_conv'} and self.spatial_attention == 'none':
                cfg['arch']['act_cfg'] = dict(type=activation)
        else:
            cfg['arch'] = arch
            if self.num_heads not in (None, PartialNet.arch_settings[arch]['num_heads']):
                cfg['num_heads'] = self.num_heads
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
        if self.residuals != tuple(mixer == 'pat_sf' for mixer in self.token_mixers):
            cfg['mixer_residual'] = self.residuals
        return cfg


def _ratio(convolved: int, width: int) -> float:
    """A split ratio from which PartialNet, which rounds down, gets so many channels."""
    ratio = convolved / width
    return ratio if int(width * ratio) == convolved else (convolved + 0.5) / width


def _tensors_of(content: dict) -> dict[str, Tensor]:
    state = find_state_dict(content)
    wrong = [f'{name} is a {type(value).__name__}' for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f'not tensors ({len(wrong)}): {shorten(wrong)}')
    return state


def _read(state: dict[str, Tensor], layout: Layout | None, stage4_block: str | None,
          target: Layout | None = None) -> tuple[_Network, dict[str, Tensor], dict[str, Tensor]]:
    """The network, its tensors by our names in the shapes of their layout, and the tensors beside a backbone."""
    title = layout.title if layout else _OURS
    prefix = find_prefix(state, FOREIGN_STEM if layout else STEM)
    if prefix is None:
        hint = next((f': it is in {other}' for stem, other in ((STEM, _OURS), (FOREIGN_STEM, OFFICIAL.title))
                     if any(name.endswith(stem) for name in state)), '')
        raise ValueError(f'not in {title}{hint}; it has no {FOREIGN_STEM if layout else STEM}, its tensors begin with '
                         f'{shorten(list(state), 3) or "nothing"}')
    if layout is not None:
        found = read_foreign(state)
        tensors, parts, unknown = found.tensors, found.parts, found.unknown
    else:
        tensors, parts, unknown = _sort_ours(state, prefix)
    parts = {name: value.detach().clone() for name, value in parts.items()}
    structure = Structure.read(tensors)
    hidden = _hides_block(structure, tensors, layout)
    network = _Network.read(tensors, BLOCKS.get(stage4_block) if hidden else None)
    try:
        shapes = network.shapes()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f'no PartialNet in {title}: {error}') from error
    _check(shapes, tensors, unknown, layout)
    _check_block(structure, hidden, target or layout, stage4_block)
    return network, tensors, parts


def _sort_ours(state: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    outer = prefix[:-len('backbone.')] if prefix.endswith('backbone.') else None
    tensors: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, value in state.items():
        # The classifier's head is beside the backbone in mmpretrain, and one of its layers in the official code.
        start = outer if outer is not None and name.startswith(f'{outer}head.') else prefix
        own = name[len(start):] if name.startswith(start) else None
        if own is not None and (OFFICIAL.foreign_name(own) or own.endswith(f'.{OWN_RESIDUAL}')):
            tensors[own] = value
        elif outer is not None and name.startswith(outer) and name[len(outer):].split('.')[0] in DENSE_PARTS:
            parts[name[len(outer):]] = value
        else:
            unknown.append(name)
    return tensors, parts, unknown


def _hides_block(structure: Structure, tensors: dict[str, Tensor], source: Layout | None) -> bool:
    """Whether no tensor shows the block of stage 4."""
    if source is not None or not structure.hides_block:
        return source is OFFICIAL and structure.hides_block
    # Where all channels are convolved, PAT_sf has no other tensors than a partial convolution, either.
    convolved = tensors.get('stages.3.0.token_mixer.conv.weight')
    marked = any(name.endswith(f'.{OWN_RESIDUAL}') for name in tensors)
    return convolved is not None and len(convolved) == 8 * structure.embed_dim and not marked


def _check_block(structure: Structure, hidden: bool, foreign: Layout, stage4_block: str | None) -> None:
    """Raises where the block of stage 4 must be stated and is not, or what is stated contradicts the tensors."""
    if stage4_block is None and (hidden or structure.hides_block and foreign is OFFICIAL):
        raise ValueError(f'{BLOCK_QUESTION}. stage4_block (--stage4-block) must be v1 or v2: what the other code '
                         'computes')
    residual = structure.residuals[-1] if stage4_block is None else BLOCKS[stage4_block]
    if not hidden and residual != structure.residuals[-1]:
        raise ValueError(f'stage4_block (--stage4-block) is {stage4_block}: its stage 4 has block '
                         f'{"v2" if structure.residuals[-1] else "v1"}, so that the other code would compute something '
                         'else')


def _official_shape(name: str, shape: _Shape) -> _Shape:
    """The shape in other code of a tensor by our name, but for the length of position tables."""
    return (*shape, 1, 1) if name == HIDDEN else tuple(shape)


def _check(shapes: dict[str, _Shape], tensors: dict[str, Tensor], unknown: list[str], layout: Layout | None) -> None:
    def called(name: str) -> str:
        return (layout.foreign_name(name) if layout else None) or name

    def shape_in_layout(name: str) -> _Shape:
        if layout is None:
            return shapes[name]
        if name.endswith(TABLE):
            return (shapes[name][0], 2 * FIRST_BUCKET + 1)
        return _official_shape(name, shapes[name])

    marked = any(name.endswith(f'.{OWN_RESIDUAL}') for name in tensors)
    missing = [called(name) for name in shapes if name not in tensors
               and not (layout is not None and name == HIDDEN_BIAS)
               and (marked or not name.endswith(f'.{OWN_RESIDUAL}'))]
    unknown = unknown + [called(name) for name in tensors if name not in shapes]
    misshapen = [f'{called(name)} is {tuple(tensors[name].shape)} and not {shape_in_layout(name)}'
                 for name in shapes if name in tensors and tuple(tensors[name].shape) != shape_in_layout(name)]
    problems = [f'{kind} ({len(names)}): {shorten(names)}' for kind, names in (
        ('missing', missing), ('unknown', unknown), ('of another shape', misshapen)) if names]
    if problems:
        raise ValueError(f'no PartialNet in {layout.title if layout else _OURS}. {". ".join(problems)}. Merged '
                         "(deploy) forms, layer scale, and mixers and gates that are not the paper's own are not "
                         'converted')
