# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What goes wrong with a checkpoint, in one sentence that names the file."""

PRETRAINING_HINT = (
    'Get it by pretraining with configs/pretrain, or start from random weights with a config for that: '
    'configs/mask_rcnn/partialnet_t0_scratch.py, partialnet_s_scratch.py')
TRUST_HINT = 'If you trust where it comes from: --trust-checkpoint'


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to another network. Tools print it without a traceback."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint does not exist."""


class ResumeError(CheckpointError, RuntimeError):
    """A training cannot resume, or may not start in a work folder."""
