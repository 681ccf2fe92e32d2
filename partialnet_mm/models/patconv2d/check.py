# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Finds a ``conv_cfg`` of type 'PATConv' that has changed nothing."""
from collections.abc import Iterator
from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn

from .layer import PATConv2d


def require_patconv(model: nn.Module, cfg: Any) -> None:
    """Raises if a part of a model was to have PATConv layers and has none.

    Args:
        model: The model; wrappers for parallel training may be
            around it.
        cfg: The config that it was built from.

    Raises:
        ValueError: If a ``conv_cfg`` of type 'PATConv' has replaced no
            convolution.
    """
    if is_model_wrapper(model):
        model = model.module
    for path in _places(cfg, ()):
        part, name = model, 'model'
        # What is built from model['backbone'] is model.backbone; of what a library calls otherwise, the whole is looked
        # at.
        for key in path[:-1]:
            child = getattr(part, str(key), None)
            if not isinstance(child, nn.Module):
                break
            part, name = child, f'{name}.{key}'
        if not any(isinstance(layer, PATConv2d) for layer in part.modules()):
            raise ValueError(
                f"{'.'.join(map(str, ('model', *path)))} is of type 'PATConv' and has replaced no layer: {name} "
                f'({type(part).__name__}) builds no convolution by it that keeps the width and is larger than 1x1. '
                'Allowed are networks that build one; those with convolutions of their own take replace_convs(), '
                "mmpretrain's ConvNeXt type='PATConvNeXt'")


def _places(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(node, dict):
        if str(node.get('type')).split('.')[-1] == 'PATConv':
            yield path
        for key, child in node.items():
            yield from _places(child, (*path, key))
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _places(child, (*path, index))
