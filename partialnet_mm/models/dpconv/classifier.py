# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The builder by which configs find the classifier that learns split ratios."""
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module(name='DPConvClassifier')
def build_dpconv_classifier(**arguments: object) -> nn.Module:
    """Builds a :class:`DPConvClassifier`, which has the arguments and checks them; only then mmpretrain is imported.

    Raises:
        ImportError: If mmpretrain is not installed.
    """
    try:
        from ._image_classifier import DPConvClassifier
    except ImportError as error:
        raise ImportError("type='DPConvClassifier' is a classifier of mmpretrain, and mmpretrain cannot be imported: "
                          f'{error}') from error
    return DPConvClassifier(**arguments)
