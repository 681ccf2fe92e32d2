# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The types of a config, however they are written.

A type is a class or a function itself (mmengine's pure-Python configs), a lazy import of it, its name, its name behind
a library ('mmdet.ResNet') or behind a module ('mmdet.models.backbones.resnet.ResNet', as mmengine saves a class).
"""
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import MODELS, Registry

#: Classes and functions that mmengine, mmcv and this package register under other names than their own.
REGISTERED_NAMES = {
    'PretrainedInit': 'Pretrained', 'BatchNorm2d': 'BN', 'SyncBatchNorm': 'SyncBN', 'GroupNorm': 'GN',
    'LayerNorm': 'LN', 'build_patconv': 'PATConv', 'build_patconvnext': 'PATConvNeXt', 'build_dpconv': 'DPConv'}
#: Libraries whose name is a default scope.
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain', 'mmpose', 'mmrotate', 'mmdet3d', 'mmyolo')


def type_name(kind: Any) -> str:
    """The name of a type in its registry: 'FPN' for the class, for 'FPN', 'mmdet.FPN' and 'mmdet.models.necks.fpn.FPN'.

    Anything else gives its text, so that None is 'None'.
    """
    name = kind.__name__ if inspect.isclass(kind) or inspect.isroutine(kind) else str(kind).split('.')[-1]
    return REGISTERED_NAMES.get(name, name)


def find_type(kind: Any, registry: Registry = MODELS) -> Callable | None:
    """The class or builder of a type, None if the registry of the default scope and its parents do not have it."""
    if isinstance(kind, (LazyAttr, LazyObject)):
        return kind.build()
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as scoped:  # that of the config's default scope, then its parents
        return scoped.get(kind)


def library_of(kind: Any) -> str | None:
    """The library, one of :data:`LIBRARIES`, of a type, or of the first of its bases that is of one."""
    if isinstance(kind, (LazyAttr, LazyObject)):
        kind = kind.build()
    modules = [kind] if isinstance(kind, str) else [base.__module__ for base in getattr(kind, '__mro__', ())]
    return next((name for name in (module.split('.')[0] for module in modules) if name in LIBRARIES), None)


def complete_types(cfg: Config) -> Config:
    """Gives a config what pure-Python configs leave out, and a saved one of that kind what mmcv needs; returns it.

    Without a ``default_scope`` it gets the library of the model's type. A function of :mod:`mmcv.ops.nms` as a type is
    replaced by its name: saved as text with its module, mmcv does not find it.
    """
    if not cfg.get('default_scope') and isinstance(cfg.get('model'), Mapping):
        scope = library_of(cfg.model.get('type'))
        if scope is not None:
            cfg.default_scope = scope
    _name_suppression(cfg.get('model'))
    return cfg


def _name_suppression(node: Any) -> None:
    if isinstance(node, dict):
        kind = node.get('type')
        path = f'{kind.__module__}.{kind.__name__}' if inspect.isfunction(kind) else kind
        if isinstance(path, str) and path.startswith('mmcv.ops.') and path.endswith('nms'):
            node['type'] = type_name(path)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        _name_suppression(child)
