# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PartialNet for the OpenMMLab family.

Importing this package checks what it runs on and registers PartialNet in
mmengine's root registries, so that ``type='PartialNet'`` builds in every
OpenMMLab library.
"""
from .compat import check_environment
from .version import __version__

check_environment()

from . import engine, models  # noqa: E402  they import what was just checked
from .models import PartialNet  # noqa: E402

__all__ = ['PartialNet', '__version__', 'engine', 'models']
