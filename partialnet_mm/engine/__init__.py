# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .atomic_backend import AtomicLocalBackend
from .coco_format_runner import CocoFormatRunner, spread_data_settings
from .crash_safe_checkpoint_hook import CrashSafeCheckpointHook
from .epoch_data_hook import EpochDataHook
from .finite_hook import FiniteHook
from .layer_decay import PartialNetLayerDecayConstructor
from .preemption_hook import EXIT_PREEMPTED, PreemptionHook
from .preflight_hook import PreflightHook
from .ratio_hook import RatioHook
from .train_resolution_hook import TrainResolutionHook

__all__ = [
    'AtomicLocalBackend', 'CocoFormatRunner', 'CrashSafeCheckpointHook', 'EXIT_PREEMPTED', 'EpochDataHook',
    'FiniteHook', 'PartialNetLayerDecayConstructor', 'PreemptionHook', 'PreflightHook', 'RatioHook',
    'TrainResolutionHook', 'spread_data_settings'
]
