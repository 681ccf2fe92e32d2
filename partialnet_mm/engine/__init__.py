# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .hooks import (
    EXIT_PREEMPTED,
    CrashSafeCheckpointHook,
    EpochDataHook,
    FiniteHook,
    PATConvCheckHook,
    PreemptionHook,
    PreflightHook,
    RatioHook,
    TrainResolutionHook,
)
from .optimizers import PartialNetLayerDecayConstructor
from .runners import CocoFormatRunner, apply_own_data_settings

spread_data_settings = apply_own_data_settings  # its name in version 0.1

__all__ = [
    'CocoFormatRunner', 'CrashSafeCheckpointHook', 'EXIT_PREEMPTED', 'EpochDataHook', 'FiniteHook', 'PATConvCheckHook',
    'PartialNetLayerDecayConstructor', 'PreemptionHook', 'PreflightHook', 'RatioHook', 'TrainResolutionHook',
    'apply_own_data_settings', 'spread_data_settings'
]
