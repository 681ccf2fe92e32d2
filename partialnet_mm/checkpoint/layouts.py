# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The names of a network's tensors in other code, and what tensors show of their network.

The official code of PartialNet was written over FasterNet's, so both have one layout. timm's FasterNet has another one.
"""
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import CheckpointError

#: Prefixes that trainers and detectors add to the names of a network, one or several of them.
WRAPPERS = ('model', 'module', 'backbone')
#: Modules of detectors and segmentors beside the backbone; their names are the same in all layouts.
DENSE_PARTS = ('neck', 'rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head')
#: The first of the 81 entries of an official position table that is used: distances are never negative.
FIRST_BUCKET = 40
NUM_STAGES = 4

#: The stem's weight, by which a network is found in a file: in other layouts, and in this project's.
FOREIGN_STEM, STEM = 'patch_embed.proj.weight', 'downsample_layers.0.conv.weight'
TABLE = 'token_mixer.position_bias.table'
HIDDEN, HIDDEN_BIAS = 'head.layers.0.fc.weight', 'head.layers.0.fc.bias'
#: Ends the name of a buffer that a block has whose token mixer has a residual against the mixer's own choice, or none.
OWN_RESIDUAL = 'own_residual'

_BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


def _leaves(foreign: str, ours: str, leaves: Iterable[str] = ('weight', )) -> dict[str, str]:
    return {f'{foreign}.{leaf}': f'{ours}.{leaf}' for leaf in leaves}


#: The other code's name and ours, of what is in every block, and of the attentions.
_CONVOLUTIONS = {
    **_leaves('spatial_mixing.partial_conv3', 'token_mixer.conv'),
    **_leaves('mlp.0', 'mlp.conv1'),
    **_leaves('mlp.1', 'mlp.norm', _BATCH_NORM),
    **_leaves('mlp.3', 'mlp.conv2'),
}
_ATTENTIONS = {
    **_leaves('spatial_mixing.attn.cfc1', 'token_mixer.gate.conv'),
    **_leaves('spatial_mixing.attn.bn', 'token_mixer.gate.norm', _BATCH_NORM),
    **_leaves('spatial_mixing.norm', 'token_mixer.norm', _BATCH_NORM),
    **_leaves('spatial_mixing.attn.qkv', 'token_mixer.qkv'),
    **_leaves('spatial_mixing.attn.proj', 'token_mixer.proj', ('weight', 'bias')),
    'spatial_mixing.attn.rpe_k.lookup_table_bias': TABLE,
    **_leaves('mlp.4.conv_attn', 'spatial_attention.logit_conv'),
    **_leaves('mlp.4.norm', 'spatial_attention.attended_norm', _BATCH_NORM),
    **_leaves('mlp.4.norm2', 'spatial_attention.rest_norm', _BATCH_NORM),
    **_leaves('mlp.4.conv', 'spatial_attention.rest_conv'),
}
_STEM = {FOREIGN_STEM: STEM, **_leaves('patch_embed.norm', 'downsample_layers.0.norm', _BATCH_NORM)}


def _merging(foreign: str, stage: int) -> dict[str, str]:
    return {**_leaves(f'{foreign}.reduction', f'downsample_layers.{stage}.conv'),
            **_leaves(f'{foreign}.norm', f'downsample_layers.{stage}.norm', _BATCH_NORM)}


class Layout:
    """The names of other code.

    Args:
        title: What messages call it.
        step: Its number of a stage over ours.
        in_block: Its names of what is in a block, and ours.
        outside: The same of what is outside blocks.
    """

    def __init__(self, title: str, step: int, in_block: Mapping[str, str], outside: Mapping[str, str]) -> None:
        self.title, self.step = title, step
        self._in_block, self._outside = in_block, outside
        self._own_in_block = {ours: foreign for foreign, ours in in_block.items()}
        self._own_outside = {ours: foreign for foreign, ours in outside.items()}

    def own_name(self, name: str) -> str | None:
        """This project's name of a tensor that the other code calls so, None if it has none."""
        match = re.fullmatch(r'stages\.(\d)\.blocks\.(0|[1-9]\d*)\.(.+)', name)
        if match is None or match[3] not in self._in_block:
            return self._outside.get(name)
        stage, rest = divmod(int(match[1]), self.step)
        return None if rest or stage >= NUM_STAGES else f'stages.{stage}.{match[2]}.{self._in_block[match[3]]}'

    def foreign_name(self, name: str) -> str | None:
        """The other code's name of a tensor that this project calls so, None if it has none."""
        match = re.fullmatch(rf'stages\.([0-{NUM_STAGES - 1}])\.(0|[1-9]\d*)\.(.+)', name)
        if match is None or match[3] not in self._own_in_block:
            return self._own_outside.get(name)
        return f'stages.{int(match[1]) * self.step}.blocks.{match[2]}.{self._own_in_block[match[3]]}'


#: Of the official code of PartialNet, and of FasterNet's own. The list of stages has a merging layer between each two.
OFFICIAL = Layout('the official layout', 2, {**_CONVOLUTIONS, **_ATTENTIONS}, {
    **_STEM,
    **{k: v for i in (1, 2, 3) for k, v in _merging(f'stages.{2 * i - 1}', i).items()},
    **{k: v for i in range(NUM_STAGES) for k, v in _leaves(f'norm{2 * i}', f'norm{i}', _BATCH_NORM).items()},
    'avgpool_pre_head.1.weight': HIDDEN,
    'avgpool_pre_head.1.bias': HIDDEN_BIAS,
    **_leaves('head', 'head.layers.1.fc', ('weight', 'bias')),
})
#: Of timm's FasterNet.
TIMM = Layout("timm's layout of FasterNet", 1, _CONVOLUTIONS, {
    **_STEM,
    **{k: v for i in (1, 2, 3) for k, v in _merging(f'stages.{i}.downsample', i).items()},
    'conv_head.weight': HIDDEN,
    'conv_head.bias': HIDDEN_BIAS,
    **_leaves('classifier', 'head.layers.1.fc', ('weight', 'bias')),
})


class ForeignState(NamedTuple):
    """A state dict of other code, by this project's names."""

    layout: Layout
    tensors: dict[str, Tensor]  #: of backbone and classifier's head, in their own shapes
    parts: dict[str, Tensor]  #: of what is beside a backbone
    unknown: list[str]  #: the other code's names that this project has none for


def separate_logits(state: Mapping[str, Any]) -> dict[str, Any]:
    """Merged blocks of version 0.1.0 by the names of now.

    The logit of PAT_sp was the last channel of the convolution before it, and has a convolution of its own now.

    Args:
        state: Tensors by name, of any network.

    Returns:
        The same, with new names where there are such blocks.
    """
    state = dict(state)
    for shift in [name for name in state if name.endswith('spatial_attention.shift')]:
        block = shift.removesuffix('spatial_attention.shift')
        for leaf in ('weight', 'bias'):
            rows, logit = f'{block}mlp.conv2.{leaf}', f'{block}spatial_attention.logit_conv.{leaf}'
            if isinstance(state.get(rows), Tensor) and state[rows].dim() and logit not in state:
                state[rows], state[logit] = state[rows][:-1], state[rows][-1:]
    return state


def foreign_layout(names: Iterable[str]) -> Layout | None:
    """The layout that names are of, None if it is no other code's."""
    names = list(names)
    if not any(name.endswith(FOREIGN_STEM) for name in names):
        return None
    return TIMM if any(re.search(r'(^|\.)stages\.\d\.downsample\.', name) for name in names) else OFFICIAL


def find_prefix(names: Iterable[str], stem: str, file: str = 'it') -> str | None:
    """What comes before the names of the one network whose stem is called so, None where there is no such stem.

    Raises:
        CheckpointError: If there are several, or the prefix is unknown.
    """
    found = [name[:-len(stem)] for name in names if name.endswith(stem)]
    if not found or len(found) == 1 and re.fullmatch(rf'(({"|".join(WRAPPERS)})\.)*', found[0]):
        return found[0] if found else None
    networks, allowed = ', '.join(prefix + stem for prefix in found), ', '.join(f'{wrapper}.' for wrapper in WRAPPERS)
    raise CheckpointError(f'{file} holds {networks}: one network is needed, with any of the prefixes {allowed} or none')


def read_foreign(state: Mapping[str, Tensor], file: str = 'it') -> ForeignState | None:
    """Sorts a state dict of other code by this project's names; None if it is of no such code.

    Raises:
        CheckpointError: If it holds several networks, or one under an unknown prefix.
    """
    layout = foreign_layout(state)
    if layout is None:
        return None
    prefix = find_prefix(state, FOREIGN_STEM, file)
    outer = prefix[:-len('backbone.')] if prefix.endswith('backbone.') else None
    found = ForeignState(layout, {}, {}, [])
    for name, value in state.items():
        own = layout.own_name(name[len(prefix):]) if name.startswith(prefix) else None
        if own is not None:
            found.tensors[own] = value
        elif outer is not None and name.startswith(outer) and name[len(outer):].split('.')[0] in DENSE_PARTS:
            found.parts[name[len(outer):]] = value
        else:
            found.unknown.append(name)
    return found


def own_value(name: str, value: Tensor) -> Tensor:
    """A tensor of other code in the shape that this project has by this name of its own."""
    if name.endswith(TABLE) and value.dim() == 2 and value.shape[1] == 2 * FIRST_BUCKET + 1:
        return value[:, FIRST_BUCKET:]
    return value.flatten(1) if name == HIDDEN and value.dim() == 4 and value.shape[2:] == (1, 1) else value


def foreign_value(name: str, value: Tensor) -> Tensor:
    """The reverse of :func:`own_value`; unused entries of position tables are zero, as they start there."""
    if name.endswith(TABLE):
        return F.pad(value, (FIRST_BUCKET, 0))
    return value[:, :, None, None] if name == HIDDEN else value


def with_own_names(state: Mapping[str, Any], mixer_residual: bool | Sequence[bool] | None = None,
                   file: str = 'it') -> dict[str, Any] | None:
    """A state dict of other code by the names of this project's classifiers, detectors and segmentors.

    Args:
        state: The state dict.
        mixer_residual: As given to the backbone that it is for. It decides on the block of stage 4 where no tensor
            shows it; None leaves that open. Defaults to None.
        file: What messages call the state dict. Defaults to 'it'.

    Returns:
        Names of the network begin with 'backbone.', those of a classifier's head with 'head.'; a head's hidden layer
        has a bias here, which is zero. What is unknown keeps its name. None if the state dict is of no such code.

    Raises:
        CheckpointError: If it holds several networks, or one under an unknown prefix.
    """
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not any('.spatial_mixing.partial_conv3.' in name for name in tensors):
        return None  # other networks have a stem of this name, too
    found = read_foreign(tensors, file)
    if found is None:
        return None
    named = {name if name.startswith('head.') else f'backbone.{name}': own_value(name, value)
             for name, value in found.tensors.items()}
    structure = Structure.read(found.tensors)
    stated = mixer_residual[-1] if isinstance(mixer_residual, Sequence) else mixer_residual
    if stated and found.layout is OFFICIAL and structure.hides_block:
        stage = NUM_STAGES - 1
        named.update((f'backbone.stages.{stage}.{j}.{OWN_RESIDUAL}', torch.tensor(1))
                     for j in range(structure.depths[stage]))
    if HIDDEN in named:
        named.setdefault(HIDDEN_BIAS, named[HIDDEN].new_zeros(len(named[HIDDEN])))
    return {**named, **found.parts, **{name: tensors[name] for name in found.unknown}}


def around_backbone(state: Mapping[str, Any], file: str = 'it') -> dict[str, Any] | None:
    """As :func:`with_own_names`, but the network keeps the other code's names behind 'backbone.'.

    PartialNet reads them when it loads them, and knows by its own arguments what no tensor shows.
    """
    named = with_own_names(state, file=file)
    layout = foreign_layout(state)
    return None if named is None else {
        f'backbone.{layout.foreign_name(name[len("backbone."):])}' if name.startswith('backbone.') else name:
        foreign_value(name, value) if name.startswith('backbone.') else value for name, value in named.items()}


class Structure(NamedTuple):
    """What tensors show of the PartialNet that they are of."""

    embed_dim: int
    depths: tuple[int, ...]
    attentions: tuple[str, ...]  #: in the token mixer of each stage: 'channel', 'self' or 'none'
    residuals: tuple[bool, ...]  #: whether the token mixers of each stage have a residual of their own (block v2)
    num_heads: int | None
    spatial_attention: bool

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> 'Structure':
        """Reads it off tensors by this project's names, some of which may be missing or of another shape."""
        stages: list[dict[str, Tensor]] = [{} for _ in range(NUM_STAGES)]
        for name, value in tensors.items():
            if match := re.match(rf'stages\.([0-{NUM_STAGES - 1}])\.', name):
                stages[int(match[1])][name] = value
        attentions = tuple(
            'channel' if any('.token_mixer.gate.' in name for name in stage) else
            'self' if any(re.search(r'\.token_mixer\.(qkv|proj|position_bias)\.', name) for name in stage) else 'none'
            for stage in stages)
        # A tensor without values is of a mixer whose own choice was changed, too.
        stated = [[kind != 'self' if value.is_meta else bool(value.any()) for name, value in stage.items()
                   if name.endswith(f'.{OWN_RESIDUAL}')] for stage, kind in zip(stages, attentions)]
        stem = tensors.get(STEM)
        return cls(
            embed_dim=len(stem) if stem is not None and stem.dim() else 0,
            depths=tuple(len({name.split('.')[2] for name in stage}) for stage in stages),
            attentions=attentions,
            residuals=tuple(found[0] if found else kind == 'self' for found, kind in zip(stated, attentions)),
            num_heads=max((len(value) for name, value in tensors.items() if name.endswith(TABLE) and value.dim()),
                          default=None),
            spatial_attention=any('.spatial_attention.' in name for name in tensors))

    @property
    def hides_block(self) -> bool:
        """Whether the official layout does not show the block of stage 4, v1 or v2."""
        return self.attentions[-1] == 'none'


#: What tensors show of a network beside heads and blocks, and how messages call it.
STRUCTURE = dict(embed_dim='embed_dim', depths='depths', attentions='attention of its token mixers',
                 spatial_attention='spatial attention')
#: Why the block of stage 4 has to be stated.
BLOCK_QUESTION = (
    'No tensor shows the block of its stage 4, because its token mixers have no attention: the official code of '
    'PartialNet without channel attention computes block v2 there, a residual around the token mixer (x + mixer(x)), '
    "and FasterNet's code block v1, without it")
#: What to do about it where a backbone is built.
STATE_BLOCK = ('State which network it is in the backbone of the config: mixer_residual=(False, False, False, True), '
               'or mixer_residual=False')


def differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """How the network that tensors are of differs from the one to load them into, in words by what differs.

    Empty where either has no stem, so is no PartialNet.
    """
    if STEM not in own or STEM not in given:
        return {}
    here, there = Structure.read(own), Structure.read(given)
    found = {what: f'{words} {getattr(there, what)} and not {getattr(here, what)}' for what, words in STRUCTURE.items()
             if getattr(there, what) != getattr(here, what)}
    if None not in (here.num_heads, there.num_heads) and here.num_heads != there.num_heads:
        found['num_heads'] = f'num_heads {there.num_heads} and not {here.num_heads}'
    for stage, (mine, theirs) in enumerate(zip(here.residuals, there.residuals)):
        # A search without attention may go on in a network with it.
        if here.attentions[stage] == there.attentions[stage] and mine != theirs:
            found[f'residuals.{stage}'] = (f'{"a" if theirs else "no"} residual around the token mixers of stage '
                                           f'{stage + 1} (mixer_residual)')
    return found


def refuse_other_network(own: Mapping[str, Tensor], given: Mapping[str, Tensor], layout: Layout | None,
                         block_stated: bool, file: str, ignored: Iterable[str] = STRUCTURE) -> None:
    """Raises for the tensors of another network, which may fit by their shapes for the greatest part.

    Args:
        own: State dict of the network.
        given: Tensors to load into it, by its names.
        layout: What they were read from; None for this project's own.
        block_stated: Whether the network's arguments state which of its blocks have a residual around the token mixer.
        file: What messages call the tensors.
        ignored: What of :data:`STRUCTURE` may differ in tensors of this project's own. Defaults to all of it.

    Raises:
        CheckpointError: If heads or blocks differ or, in a file of other code, anything of the structure does; or if
            such a file does not show its blocks, and the network's arguments do not state them.
    """
    wrong = [words for what, words in differences(own, given).items() if layout or what not in ignored]
    if wrong:
        raise CheckpointError(f'{file} is of another PartialNet: it has {"; ".join(wrong)}')
    if layout is OFFICIAL and not block_stated and STEM in given and Structure.read(given).hides_block:
        raise CheckpointError(f'{file} is in {layout.title}. {BLOCK_QUESTION}. {STATE_BLOCK}')
