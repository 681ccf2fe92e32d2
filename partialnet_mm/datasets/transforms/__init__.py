# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .detection import FastLoadAnnotations, FastRandomFlip, SelectedMasks
from .rand_augment import FastRandAugment
from .resize import FastRandomResizedCrop, FastResizeEdge

__all__ = [
    'FastLoadAnnotations', 'FastRandAugment', 'FastRandomFlip', 'FastRandomResizedCrop', 'FastResizeEdge',
    'SelectedMasks'
]
