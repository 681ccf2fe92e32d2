# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PartialNet for the OpenMMLab family.

Importing this package checks the environment and registers PartialNet in
mmengine's root registries, so that ``type='PartialNet'`` builds in every
OpenMMLab library. Where torch is not installed, ``partialnet_mm.deploy`` runs
exported models, and nothing else works.
"""
import contextlib
import sys

from .compat import check_environment, has_torch, is_starting
from .version import __version__

# The doctor also reports where the rest cannot be imported; the predictor needs none of it.
if has_torch() and not is_starting('partialnet_mm.doctor', 'partialnet_mm.deploy'):
    check_environment()

    from . import datasets, engine, models
    from .models import PartialNet
    from .swap_backbone import swap_backbone
    from .zoo import config_path, list_configs, register_with_mmpretrain

    register_with_mmpretrain()
    # Whoever imported timm before gets the variants in its registry; versions before 1.0 cannot have them.
    if 'timm' in sys.modules:
        with contextlib.suppress(ImportError):
            from . import timm as _timm  # noqa: F401

__all__ = ['PartialNet', '__version__', 'config_path', 'datasets', 'engine', 'list_configs', 'models', 'swap_backbone']


def __getattr__(name: str) -> object:
    if name in __all__ and not has_torch():
        raise ImportError(f'partialnet_mm.{name} needs torch, which is not installed; without it, only '
                          'partialnet_mm.deploy works. python -m partialnet_mm.doctor lists all that is missing, and '
                          'the commands that install it')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
