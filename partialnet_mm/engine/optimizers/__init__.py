# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .layer_decay import PartialNetLayerDecayConstructor

__all__ = ['PartialNetLayerDecayConstructor']
