# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The checks of the backbone's arguments, in one function."""
from collections.abc import Sequence
from numbers import Real
from types import SimpleNamespace

from torch import nn

from .gates import GATES
from .token_mixers import takes_gate

#: What may follow the MLP: PAT_sp, its form over all channels (Table 3), or nothing (Table 4).
SPATIAL_ATTENTIONS = ('partial', 'full', 'none')


def check_backbone(network: nn.Module, *, arch: str | dict, num_heads: int | None, in_channels: int,
                   split_ratio: float | Sequence[float], out_indices: int | Sequence[int], frozen_stages: int,
                   token_mixers: str | dict | Sequence[str | dict], mixer_residual: bool | Sequence[bool] | None,
                   gate: str | dict, spatial_attention: str, with_cp: bool | str,
                   **rates: float) -> SimpleNamespace:
    """Checks the arguments of :class:`PartialNet` and writes them out.

    Args:
        network: The backbone; its ``arch_settings`` and ``num_stages`` are
            read.
        arch, num_heads, in_channels, split_ratio, out_indices, frozen_stages,
            token_mixers, mixer_residual, gate, spatial_attention, with_cp: As
            in the backbone.
        **rates: Probabilities by name, and ``layer_scale_init_value``.

    Returns:
        ``arch`` as a dict, ``split_ratios`` of all blocks, ``token_mixers`` of
        all stages, ``mixer_residual`` of all stages or None, and
        ``out_indices`` from 0 and in order.

    Raises:
        ValueError: If an argument is outside its range, or a name unknown.
        KeyError: If a layer's type is not registered.
    """
    stages, settings = network.num_stages, network.arch_settings
    arch = _check_arch(arch, settings, stages)
    if num_heads is not None:
        arch = dict(arch, num_heads=_check_heads('num_heads', num_heads))
    num_blocks = sum(arch['depths'])
    ratios = [split_ratio] * num_blocks if isinstance(split_ratio, Real) else split_ratio
    if not isinstance(ratios, Sequence) or len(ratios) != num_blocks:
        raise ValueError(f'split_ratio must be one number or one for each of the {num_blocks} blocks, '
                         f'got {split_ratio!r}')
    wrong = [ratio for ratio in ratios if not isinstance(ratio, Real) or not 0 < ratio <= 1]
    if wrong:
        raise ValueError(f'split_ratio must lie in (0, 1], got {wrong[0]!r}')
    mixers = [token_mixers] * stages if isinstance(token_mixers, (str, dict)) else token_mixers
    if not isinstance(mixers, Sequence) or len(mixers) != stages:
        raise ValueError(f'token_mixers must be one mixer or one for each of the {stages} stages, '
                         f'got {token_mixers!r}')
    residuals = [mixer_residual] * stages if isinstance(mixer_residual, bool) else mixer_residual
    if residuals is not None and (not isinstance(residuals, Sequence) or len(residuals) != stages
                                  or any(not isinstance(residual, bool) for residual in residuals)):
        raise ValueError(f'mixer_residual must be None, a bool, or one for each of the {stages} stages, '
                         f'got {mixer_residual!r}')
    if isinstance(gate, str) and gate not in GATES or isinstance(gate, dict) and 'type' not in gate:
        raise ValueError(f'gate must be one of {tuple(GATES)} or dict(type=...), got {gate!r}')
    if gate != 'gaussian' and not any(map(takes_gate, mixers)):
        raise ValueError(f'gate={gate!r} has no effect: token_mixers={list(mixers)} has no channel attention')
    indices = [out_indices] if isinstance(out_indices, int) else out_indices
    if (not isinstance(indices, Sequence) or not indices
            or any(not isinstance(i, int) or not -stages <= i < stages for i in indices)
            or len({i % stages for i in indices}) < len(indices)):
        raise ValueError(f'out_indices must be different stages from {-stages} to {stages - 1}, got {out_indices!r}')
    if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= stages:
        raise ValueError(f'frozen_stages must be an int from -1 (none) to {stages} (all), got {frozen_stages!r}')
    if spatial_attention not in SPATIAL_ATTENTIONS:
        raise ValueError(f'spatial_attention must be one of {SPATIAL_ATTENTIONS}, got {spatial_attention!r}')
    if with_cp not in (False, True, 'norm_act'):
        raise ValueError(f"with_cp must be True, False or 'norm_act', got {with_cp!r}")
    scale = rates.pop('layer_scale_init_value')
    for name, rate in rates.items():
        if not isinstance(rate, Real) or not 0 <= rate < 1:
            raise ValueError(f'{name} must lie in [0, 1), got {rate!r}')
    if not isinstance(scale, Real) or not scale >= 0:
        raise ValueError(f'layer_scale_init_value must be 0 (none) or positive, got {scale!r}')
    if not isinstance(in_channels, int) or in_channels < 1:
        raise ValueError(f'in_channels must be a positive int, got {in_channels!r}')
    return SimpleNamespace(arch=arch, split_ratios=list(ratios), token_mixers=list(mixers),
                           mixer_residual=residuals, out_indices=tuple(sorted(i % stages for i in indices)))


def _check_arch(arch: str | dict, settings: dict[str, dict], stages: int) -> dict:
    """The sizes of a variant, by name or written out."""
    if isinstance(arch, str):
        if arch.lower() not in settings:
            raise ValueError(f'arch {arch!r} is unknown; allowed are {sorted(settings)} or a dict')
        return settings[arch.lower()]
    keys = {'embed_dim', 'depths', 'num_heads', 'act_cfg'}
    if not isinstance(arch, dict) or set(arch) != keys:
        raise ValueError(f'arch must be a name or a dict with the keys {sorted(keys)}, got {arch!r}')
    depths, embed_dim, num_heads = arch['depths'], arch['embed_dim'], arch['num_heads']
    if (not isinstance(depths, Sequence) or len(depths) != stages
            or any(not isinstance(depth, int) or depth < 1 for depth in depths)):
        raise ValueError(f"arch['depths'] must be {stages} positive ints, got {depths!r}")
    if not isinstance(embed_dim, int) or embed_dim < 2 or embed_dim % 2:
        raise ValueError(f"arch['embed_dim'] must be an even positive int, got {embed_dim!r}")
    _check_heads("arch['num_heads']", num_heads)
    return arch


def _check_heads(argument: str, num_heads: int) -> int:
    if not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f'{argument} must be a positive int, got {num_heads!r}')
    return num_heads
