# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Which layers of a network end its stages, found out by running it."""
import difflib
from typing import NamedTuple

import torch
from torch import Tensor, nn


class MapLayer(NamedTuple):
    """A layer that returns one map. Sizes are in places."""

    name: str
    channels: int
    height: int
    width: int


def map_layers(model: nn.Module, inputs: Tensor) -> dict[str, MapLayer | None]:
    """The layers of a network by name, in the order in which they end.

    Args:
        model: Any network, in evaluation mode.
        inputs: Images, (B, C, H, W).

    Returns:
        dict[str, MapLayer | None]: Layers that have run; None are those that
        return something else than one map of more than one place, or have run
        several times.
    """
    found: dict[str, MapLayer | None] = {}

    def record(name: str, output: object) -> None:
        is_map = isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1
        found[name] = MapLayer(name, *output.shape[1:]) if is_map and name not in found else None

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: record(name, output))
        for name, module in model.named_modules() if name]
    try:
        # Without gradients, layers may call the modules inside of them on pieces of the map.
        with torch.enable_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def stage_layers(model: nn.Module, inputs: Tensor) -> list[MapLayer]:
    """The layer that ends each stage of a classifier's backbone: the last one that returns maps of a size.

    A layer inside of a block that changes the size belongs to that block, and
    so to no stage.

    Args:
        model: With a ``backbone``, in evaluation mode.
        inputs: Images, (B, C, H, W).

    Returns:
        list[MapLayer]: One for each size, the last stage last. In PartialNet
        they are the last blocks; a stem that does not end at the size of the
        first stage has an entry of its own.

    Raises:
        ValueError: If no layer of the backbone returns maps.
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
        raise ValueError(f'no layer of {type(model.backbone).__name__} returns maps (B, C, H, W) of more than one '
                         f'place for images of {inputs.shape[2]} x {inputs.shape[3]}: networks of tokens have none')
    return list(stages.values())


def find_map_layer(model: nn.Module, inputs: Tensor, name: str) -> MapLayer:
    """A layer by its name.

    Args:
        model: Any network, in evaluation mode.
        inputs: Images, (B, C, H, W).
        name: As in ``named_modules``, e.g. 'backbone.stages.2.5'.

    Returns:
        MapLayer: The layer.

    Raises:
        ValueError: If there is none, or it returns no map.
    """
    found = map_layers(model, inputs)
    if found.get(name) is not None:
        return found[name]
    if name in dict(model.named_modules()):
        raise ValueError(f'layer {name!r} does not return one map (B, C, H, W) of more than one place, once in a pass')
    maps = [known for known, layer in found.items() if layer is not None]
    near = difflib.get_close_matches(name, maps, n=5, cutoff=0.5) or maps[-5:]
    raise ValueError(f'layer {name!r} is unknown; there are, for example, {near}')
