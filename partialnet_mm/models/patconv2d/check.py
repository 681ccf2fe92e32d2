# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Finds a ``conv_cfg`` of type 'PATConv' that has changed nothing."""
from collections.abc import Iterator
from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn

from ...config_types import type_name
from .layer import PATConv2d


def require_patconv(model: nn.Module, cfg: Any) -> None:
    """Raises a ValueError if a ``conv_cfg`` of type 'PATConv' has replaced no convolution.

    Args:
        model: The model, with or without a wrapper for parallel training.
        cfg: The config that it was built from.
    """
    if is_model_wrapper(model):
        model = model.module
    for path in _patconv_paths(cfg, ()):
        module, name = model, 'model'
        # model['backbone'] becomes model.backbone. Where a library uses another name, the module around it is searched.
        for key in path[:-1]:
            child = getattr(module, str(key), None)
            if not isinstance(child, nn.Module):
                break
            module, name = child, f'{name}.{key}'
        if not any(isinstance(layer, PATConv2d) for layer in module.modules()):
            raise ValueError(
                f"{'.'.join(map(str, ('model', *path)))} is of type 'PATConv' and has replaced no layer: {name} "
                f'({type(module).__name__}) builds no convolution by it that keeps the width and is larger than 1x1. '
                'Allowed are networks that build one; those with convolutions of their own take replace_convs(), '
                "mmpretrain's ConvNeXt type='PATConvNeXt'")


def _patconv_paths(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(node, dict) and type_name(node.get('type')) == 'PATConv':
        yield path
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(
            node, (list, tuple)) else ():
        yield from _patconv_paths(child, (*path, key))
