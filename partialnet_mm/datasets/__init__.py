# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .shapes import SHAPE_CLASSES, write_shapes_dataset

__all__ = ['SHAPE_CLASSES', 'write_shapes_dataset']
