# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints of whole models, converted into the merged form."""
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..models import merge_model
from .publish import strip_checkpoint


class Merged(NamedTuple):
    """A merged checkpoint."""

    #: 'state_dict', and 'meta' with the config of the merged model.
    content: dict
    #: Names of the merged modules, as 'backbone'.
    modules: list[str]
    #: Largest difference between the feature maps of the two forms, relative to the largest value of each map.
    difference: float


def reparameterize(cfg: Config, content: dict, build_model: Callable[[Config], nn.Module]) -> Merged:
    """Merges a checkpoint, and compares the model that its merged weights give with the given one.

    The merged weights are loaded into the model that the config builds with
    ``deploy=True``.

    Args:
        cfg: Config of the checkpoint; stays as it is.
        content: Content of the checkpoint.
        build_model: Builds the model of a config.

    Raises:
        TypeError: If there is nothing that can be merged, or a norm cannot.
        ValueError: If the checkpoint does not fit or is not finite, or a norm
            has no statistics.
    """
    stripped = strip_checkpoint(content)
    state = {name.removeprefix('module.'): value for name, value in stripped['state_dict'].items()}
    model, source = build_model(cfg), build_model(cfg)
    _load(model, state)
    _load(source, state)
    modules = merge_model(source)
    merged_cfg = _deploy_config(cfg, modules)
    merged = build_model(merged_cfg)
    merged.load_state_dict(source.state_dict(), strict=True)
    return Merged(
        dict(state_dict=merged.state_dict(), meta=dict(stripped['meta'], cfg=merged_cfg.pretty_text)), modules,
        _difference(merged, model, cfg.model.get('backbone', {}).get('in_channels', 3)))


def _deploy_config(cfg: Config, modules: list[str]) -> Config:
    """The same config, with ``deploy=True`` in the modules of these names."""
    cfg = Config(cfg.to_dict())
    for name in modules:
        node = cfg.model
        for word in name.split('.'):
            node = node.get(word) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ValueError(f'the model merges {name!r}, and the config has no model.{name} to set deploy=True in')
        if node.get('deploy'):
            raise ValueError(f'model.{name}.deploy is True in the config already: the checkpoint is merged')
        node.deploy = True
    return cfg


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError('the checkpoint does not fit the config: it belongs to another network or other classes, or '
                         f'is merged already. {" ".join(str(error).split())[:1500]}') from error


@torch.no_grad()
def _difference(merged: nn.Module, model: nn.Module, channels: int) -> float:
    images = torch.randn(2, channels, 224, 224, generator=torch.Generator().manual_seed(0))
    pairs = zip(_tensors_in(merged.eval().extract_feat(images)), _tensors_in(model.eval().extract_feat(images)))
    # Unlike Python's, torch's maximum is NaN where any is.
    return torch.stack([(out - want).abs().max() / want.abs().max() for out, want in pairs]).max().item()


def _tensors_in(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for output in outputs:
            yield from _tensors_in(output)
