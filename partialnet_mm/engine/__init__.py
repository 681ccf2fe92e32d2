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
from .runners import CocoFormatRunner, spread_data_settings

__all__ = [
    'CocoFormatRunner', 'CrashSafeCheckpointHook', 'EXIT_PREEMPTED', 'EpochDataHook', 'FiniteHook', 'PATConvCheckHook',
    'PartialNetLayerDecayConstructor', 'PreemptionHook', 'PreflightHook', 'RatioHook', 'TrainResolutionHook',
    'spread_data_settings'
]
