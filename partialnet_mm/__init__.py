# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PartialNet for the OpenMMLab family.

Importing this package checks the environment and registers PartialNet in
mmengine's root registries, so that ``type='PartialNet'`` builds in every
OpenMMLab library.
"""
import contextlib
import sys

from .compat import check_environment, is_starting_doctor
from .version import __version__

# The doctor also reports where the rest cannot be imported.
if not is_starting_doctor():
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
