# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .annotation_files import AnnotatedPictures, Dropped, Picture, Shape, read_annotated_pictures
from .shapes import SHAPE_CLASSES, write_shapes_dataset
from .transforms import (
    FastLoadAnnotations,
    FastRandAugment,
    FastRandomFlip,
    FastRandomResizedCrop,
    FastResizeEdge,
    SelectedMasks,
)

__all__ = [
    'AnnotatedPictures', 'Dropped', 'FastLoadAnnotations', 'FastRandAugment', 'FastRandomFlip',
    'FastRandomResizedCrop', 'FastResizeEdge', 'Picture', 'SHAPE_CLASSES', 'SelectedMasks', 'Shape',
    'read_annotated_pictures', 'write_shapes_dataset'
]
