# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The effective receptive field: by how much each pixel counts for the middle of a map."""
import torch
from torch import Tensor, nn


def receptive_field(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """Gradient of the middle place of a layer's map with respect to the images.

    Paper: `Understanding the Effective Receptive Field in Deep Convolutional
    Neural Networks <https://arxiv.org/abs/1701.04128>`_. The middle of H' x W'
    places is (H' // 2, W' // 2); its channels are summed.

    Args:
        model: Any network, in evaluation mode.
        layer: A layer of it that returns maps (B, C', H', W').
        inputs: Images, (B, C, H, W), normalized.

    Returns:
        Tensor: (H, W), the gradient's absolute values summed over the images'
        channels and averaged over the images.
    """
    maps = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: maps.append(output.clone()))
    inputs = inputs.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            model(inputs)
    finally:
        handle.remove()
    features, = maps
    middle = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
    gradient, = torch.autograd.grad(middle.sum(), inputs)
    return gradient.abs().sum(dim=1).mean(dim=0)


def largest_pixels(contributions: Tensor, part: float) -> Tensor:
    """The fewest pixels that together hold a part of the whole.

    Args:
        contributions: (H, W), not negative, not all zero.
        part: In (0, 1].

    Returns:
        Tensor: Booleans, (H, W). Their mean is the share of the area.

    Raises:
        ValueError: If ``part`` is outside (0, 1], or no pixel contributes.
    """
    if not 0 < part <= 1:
        raise ValueError(f'part must lie in (0, 1], got {part!r}')
    values, order = contributions.flatten().double().sort(descending=True, stable=True)
    held = values.cumsum(0)
    if not held[-1] > 0:
        raise ValueError('no pixel contributes to the middle of the map')
    # The pixel that reaches the part belongs to it; float32's rounding must not add one.
    count = int((held < part * held[-1] * (1 - 1e-6)).sum()) + 1
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.view_as(contributions)
