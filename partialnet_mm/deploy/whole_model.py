# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Whole models of OpenMMLab as functions from uint8 images to answers, for export as ONNX."""
import importlib

from torch import nn

#: The exporter of each head, as module and class below partialnet_mm.deploy; subclasses have that of their base. A head
#: is the ``roi_head`` of a detector, or the ``bbox_head`` of one without.
DETECTORS = {
    'StandardRoIHead': ('two_stage', 'TwoStage'),
    'CascadeRoIHead': ('two_stage', 'Cascade'),
    # Entries for dense_heads and detr are added below this line, one per line: 'RetinaHead': ('dense_heads', '...')
}


def detector_exporter(model: nn.Module) -> type[nn.Module]:
    """The subclass of Detector that exports a detector of mmdet.

    Raises:
        ValueError: If there is none.
    """
    head = getattr(model, 'roi_head', None)
    if head is None:
        head = getattr(model, 'bbox_head', None)
    for kind in type(head).__mro__:
        if kind.__name__ in DETECTORS:
            module, name = DETECTORS[kind.__name__]
            return getattr(importlib.import_module(f'partialnet_mm.deploy.{module}'), name)
    missing = type(model if head is None else head).__name__
    raise ValueError(f'{missing} cannot be expressed in an ONNX file; what can be: {", ".join(DETECTORS)}')
