# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints: the only code of this package that opens or writes one."""
from ._data_pickle import Reference
from .errors import CheckpointError, MissingCheckpointError, ResumeError
from .loader import register_loader
from .reader import read_checkpoint
from .writer import check_ending, serialize_checkpoint, write_checkpoint

__all__ = [
    'CheckpointError', 'MissingCheckpointError', 'Reference', 'ResumeError', 'check_ending', 'read_checkpoint',
    'register_loader', 'serialize_checkpoint', 'write_checkpoint'
]
