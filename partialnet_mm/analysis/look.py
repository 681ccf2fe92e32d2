# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Looking into networks: layers that end stages, Grad-CAM, receptive fields, both halves of partial attention.

In all functions ``model`` is in evaluation mode, ``inputs`` are normalized images (B, C, H, W), and a layer is named as
in ``named_modules``. Functions that look at one layer need one that returns one feature map (B, C', H', W').
"""
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import PartialChannelAttention, PartialConv, PartialSelfAttention, PATConv2d

#: Classes of the library grad-cam by the names that commands take.
METHODS = {
    'gradcam': 'GradCAM', 'gradcam++': 'GradCAMPlusPlus', 'xgradcam': 'XGradCAM', 'layercam': 'LayerCAM',
    'hirescam': 'HiResCAM', 'gradcam-elementwise': 'GradCAMElementWise', 'eigencam': 'EigenCAM',
    'eigengradcam': 'EigenGradCAM', 'scorecam': 'ScoreCAM'}
#: Layers that split their channels at a fixed position, the convolved ones first.
SPLITTERS = (PartialChannelAttention, PartialSelfAttention, PartialConv, PATConv2d)


class MapLayer(NamedTuple):
    """A layer that returns one feature map of height x width pixels."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def label(self) -> str:
        return f'{self.name.replace("backbone.", "", 1)}, {self.height} x {self.width}'


class SplitMaps(NamedTuple):
    """Feature maps (channels, H, W) of one image; attended ones come after the convolution in Table 3's form "F"."""

    convolved_in: Tensor
    convolved_out: Tensor
    attended_in: Tensor
    attended_out: Tensor
    first_attended: int  # index of the channel in the layer
    gate: Tensor | None  # of PAT_ch: one value per attended channel, in [0, 1]
    spatial_gate: Tensor | None  # of the PAT_sp that follows in the same block: (H, W), in [0, 1]


@contextmanager
def _hooked(layers: Iterable[tuple[str, nn.Module]], record: Callable[[str, tuple, object], None]) -> Iterator[None]:
    """Calls ``record(name, arguments, output)`` for each call of the layers."""
    handles = [layer.register_forward_hook(lambda _, args, output, name=name: record(name, args, output))
               for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def map_layers(model: nn.Module, inputs: Tensor) -> dict[str, MapLayer | None]:
    """The layers that ran, in the order in which they end; None unless one feature map of several pixels per pass."""
    found: dict[str, MapLayer | None] = {}

    def record(name: str, args: tuple, output: object) -> None:
        is_map = isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1
        found[name] = MapLayer(name, *output.shape[1:]) if is_map and name not in found else None

    with torch.no_grad(), _hooked(((name, module) for name, module in model.named_modules() if name), record):
        model(inputs)
    return found


def stage_layers(model: nn.Module, inputs: Tensor) -> list[MapLayer]:
    """The layer that ends each stage of ``model.backbone``: the last one with feature maps of a size, last stage last.

    A layer inside a block that changes the size belongs to that block, and so to no stage. A stem that does not end at
    the size of the first stage has an entry of its own.
    """
    found = map_layers(model, inputs)
    stages: dict[tuple, MapLayer] = {}
    for name, layer in found.items():
        words = name.split('.')
        if words[0] != 'backbone' or layer is None or isinstance(model.get_submodule(name), nn.Identity):
            continue
        size = layer[2:]
        around = ('.'.join(words[:i]) for i in range(2, len(words)))
        if all(found[outer] is not None and found[outer][2:] == size for outer in around if outer in found):
            stages.pop(size, None)  # so that stages stay in the order in which they end
            stages[size] = layer
    if not stages:
        raise ValueError(f'no layer of {type(model.backbone).__name__} returns feature maps (B, C, H, W) of more than '
                         f'one pixel for images of {inputs.shape[2]} x {inputs.shape[3]}: networks of tokens have none')
    return list(stages.values())


def find_map_layer(model: nn.Module, inputs: Tensor, name: str) -> MapLayer:
    """The layer of a name; raises a ValueError with the nearest names if it returns no feature map."""
    found = map_layers(model, inputs)
    if found.get(name) is not None:
        return found[name]
    if name in dict(model.named_modules()):
        raise ValueError(f'layer {name!r} does not return one feature map (B, C, H, W) of more than one pixel, once '
                         'per pass')
    maps = [known for known, layer in found.items() if layer is not None]
    near = difflib.get_close_matches(name, maps, n=5, cutoff=0.5) or maps[-5:]
    raise ValueError(f'layer {name!r} is unknown; there are, for example, {near}')


def cam_method(name: str = 'gradcam') -> type:
    """The class of the library grad-cam for a key of :data:`METHODS`."""
    try:
        import pytorch_grad_cam
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'heat maps need the package grad-cam ({error}): pip install grad-cam') from error
    return getattr(pytorch_grad_cam, METHODS[name])


def heat_maps(model: nn.Module, layer: str, inputs: Tensor, labels: Sequence[int],
              method: str = 'gradcam') -> np.ndarray:
    """`Grad-CAM <https://arxiv.org/abs/1610.02391>`_ of a classifier for one label per image.

    Returns (B, H, W) in [0, 1], each image with a scale of its own. ``method`` is a key of :data:`METHODS`.
    """
    build = cam_method(method)
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    # Later layers may write into the feature map.
    cam = build(model, [model.get_submodule(layer)], reshape_transform=torch.clone)
    try:
        # Frozen layers alone give no gradient.
        return cam(inputs.detach().clone().requires_grad_(), [ClassifierOutputTarget(label) for label in labels])
    finally:
        cam.activations_and_grads.release()


def receptive_field(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """The `effective receptive field <https://arxiv.org/abs/1701.04128>`_ of the middle pixel of a layer's feature map.

    Returns (H, W): absolute gradients of that pixel, its channels summed, with respect to the images, summed over their
    channels and averaged over the images.
    """
    maps: list[Tensor] = []
    inputs = inputs.detach().clone().requires_grad_()
    with torch.enable_grad(), _hooked([(layer, model.get_submodule(layer))],
                                      lambda name, args, output: maps.append(output.clone())):
        model(inputs)
    features, = maps
    middle = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
    gradient, = torch.autograd.grad(middle.sum(), inputs)
    return gradient.abs().sum(dim=1).mean(dim=0)


def largest_pixels(contributions: Tensor, fraction: float) -> Tensor:
    """The fewest pixels that together hold a fraction, in (0, 1], of the sum of (H, W) values: booleans (H, W)."""
    values, order = contributions.flatten().double().sort(descending=True, stable=True)
    held = values.cumsum(0)
    if not held[-1] > 0:
        raise ValueError('no pixel contributes to the middle of the feature map')
    # The pixel that reaches the fraction belongs to it; the rounding of float32 must not add one.
    count = int((held < fraction * held[-1] * (1 - 1e-6)).sum()) + 1
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.view_as(contributions)


def splitting_layers(model: nn.Module) -> list[str]:
    """Names of the layers that split their channels into convolved and attended ones, in the network's order."""
    return [name for name, module in model.named_modules() if isinstance(module, SPLITTERS) and module.split_sizes[1]]


def split_maps(model: nn.Module, names: Sequence[str], image: Tensor) -> dict[str, SplitMaps]:
    """The inputs and outputs of both halves of some layers for one image (1, C, H, W), by the layers' names."""
    known = splitting_layers(model)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f'layer {unknown[0]!r} does not split its channels into convolved and attended ones; '
                         f'allowed are {known or "none: this network has no such layer"}')
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {}
    for name in names:
        layer, block = model.get_submodule(name), model.get_submodule(name.rpartition('.')[0])
        layers |= {name: layer, f'{name} conv': layer.conv, f'{name} gate': getattr(layer, 'gate', None),
                   f'{name} spatial': getattr(getattr(block, 'spatial_attention', None), 'logit_conv', None)}

    def record(key: str, args: tuple, output: Tensor) -> None:
        kept[key] = args[0][0].clone(), output[0].clone()

    with torch.no_grad(), _hooked(((key, layer) for key, layer in layers.items() if layer is not None), record):
        model(image)

    found = {}
    for name in names:
        layer, (x, output) = layers[name], kept[name]
        convolved_in, attended_in = x.split(layer.split_sizes)
        convolved_out, first = kept[f'{name} conv'][1], layer.split_sizes[0]
        if getattr(layer, 'attend_all', False):
            first, attended_in = 0, torch.cat((convolved_out, attended_in))
        gate, logit = (kept[key][1] if key in kept else None for key in (f'{name} gate', f'{name} spatial'))
        found[name] = SplitMaps(convolved_in, convolved_out, attended_in, output[first:], first,
                                None if gate is None else gate.flatten(),
                                None if logit is None else F.hardsigmoid(logit)[0])
    return found
