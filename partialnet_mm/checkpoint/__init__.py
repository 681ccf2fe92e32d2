# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints: the only code of this package that opens or writes one."""
from ._data_pickle import Reference
from .loader import register_loader
from .reader import read_checkpoint
from .writer import write_checkpoint

__all__ = ['Reference', 'read_checkpoint', 'register_loader', 'write_checkpoint']
