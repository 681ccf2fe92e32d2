# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Heat maps of what a classifier looks at, by the library grad-cam."""
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

#: The library's classes by the names that commands take.
METHODS = {
    'gradcam': 'GradCAM', 'gradcam++': 'GradCAMPlusPlus', 'xgradcam': 'XGradCAM', 'layercam': 'LayerCAM',
    'hirescam': 'HiResCAM', 'gradcam-elementwise': 'GradCAMElementWise', 'eigencam': 'EigenCAM',
    'eigengradcam': 'EigenGradCAM', 'scorecam': 'ScoreCAM'}


def cam_method(name: str = 'gradcam') -> type:
    """The library's class of a method.

    Args:
        name: One of :data:`METHODS`. Defaults to 'gradcam'.

    Returns:
        type: A subclass of ``pytorch_grad_cam.base_cam.BaseCAM``.

    Raises:
        ValueError: If there is no such method.
        ModuleNotFoundError: If the library is not installed.
    """
    if name not in METHODS:
        raise ValueError(f'method must be one of {list(METHODS)}, got {name!r}')
    try:
        import pytorch_grad_cam
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'heat maps need the package grad-cam ({error}): pip install partialnet-mm[benchmark]') from error
    return getattr(pytorch_grad_cam, METHODS[name])


def heat_maps(model: nn.Module, layer: str, inputs: Tensor, labels: Sequence[int],
              method: str = 'gradcam') -> np.ndarray:
    """What in each image speaks for a class.

    Paper: `Grad-CAM <https://arxiv.org/abs/1610.02391>`_.

    Args:
        model: From images to logits (B, classes).
        layer: A layer of it that returns maps (B, C, H', W').
        inputs: Images, (B, C, H, W), normalized.
        labels: The class of each image that is asked for.
        method: One of :data:`METHODS`. Defaults to 'gradcam'.

    Returns:
        np.ndarray: (B, H, W) in [0, 1], each image scaled by itself.

    Raises:
        ValueError: If there is no such method, or the model does not return
            logits.
        ModuleNotFoundError: If grad-cam is not installed.
    """
    build = cam_method(method)
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    with torch.no_grad():
        logits = model(inputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError(f'{type(model).__name__} does not return logits (B, classes), which heat maps need')
    # Layers that follow may write into the map that is looked at.
    cam = build(model, [model.get_submodule(layer)], reshape_transform=torch.clone)
    try:
        # Frozen layers give no gradient by themselves.
        return cam(inputs.detach().clone().requires_grad_(), [ClassifierOutputTarget(label) for label in labels])
    finally:
        cam.activations_and_grads.release()
