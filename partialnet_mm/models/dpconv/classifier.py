# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The name under which configs find the classifier that learns split ratios."""
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module(name='DPConvClassifier')
def build_dpconv_classifier(**arguments: object) -> nn.Module:
    """Builds a :class:`DPConvClassifier`.

    mmpretrain is imported when a classifier is built, so that the other
    libraries need not have it.

    Args:
        **arguments: Those of :class:`DPConvClassifier`, which checks them.

    Returns:
        nn.Module: The classifier.

    Raises:
        ImportError: If mmpretrain is not installed.
    """
    try:
        from ._image_classifier import DPConvClassifier
    except ImportError as error:
        raise ImportError("type='DPConvClassifier' is a classifier of mmpretrain, and mmpretrain cannot be imported: "
                          f'{error}') from error
    return DPConvClassifier(**arguments)
