# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .crash_safe_checkpoint_hook import CrashSafeCheckpointHook
from .epoch_data_hook import EpochDataHook
from .finite_hook import FiniteHook
from .patconv_check_hook import PATConvCheckHook
from .preemption_hook import EXIT_PREEMPTED, PreemptionHook
from .preflight_hook import PreflightHook
from .ratio_hook import RatioHook
from .train_resolution_hook import TrainResolutionHook

__all__ = [
    'CrashSafeCheckpointHook', 'EXIT_PREEMPTED', 'EpochDataHook', 'FiniteHook', 'PATConvCheckHook', 'PreemptionHook',
    'PreflightHook', 'RatioHook', 'TrainResolutionHook'
]
