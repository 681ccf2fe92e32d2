# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The relative position bias of L x L entries, which is what PAT_sf costs in memory on large images."""
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from partialnet_mm.models import PartialNet

DEPTH, HEADS = 3, 2
SIZES = [(32 * height, 32 * width) for height, width in
         ((1, 1), (2, 3), (3, 2), (4, 5), (5, 4), (6, 7), (3, 9), (8, 2), (7, 7), (2, 2))]


class Results(TorchFunctionMode):
    """Keeps the floating-point results of operations that have so many entries, each storage once."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries = entries
        self.storages = {}

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: object = None) -> object:
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, Tensor) and value.numel() == self.entries and value.is_floating_point():
                self.storages[value.untyped_storage().data_ptr()] = value
        return result


@pytest.fixture(params=['trained', 'merged'])
def network(request, tiny_arch) -> PartialNet:
    model = PartialNet(dict(tiny_arch, depths=(1, 1, 1, DEPTH), num_heads=HEADS), out_indices=(0, 1, 2, 3)).eval()
    if request.param == 'merged':
        model.switch_to_deploy()
    return model


def biases(network: PartialNet, height: int, width: int) -> list[Tensor]:
    length = height // 32 * (width // 32)
    with Results(HEADS * length**2) as results:
        network(torch.randn(1, 3, height, width))
    return list(results.storages.values())


@pytest.mark.parametrize('height, width', [(224, 352), (160, 352)])
@pytest.mark.parametrize('grad', [False, True])
def test_each_layer_makes_its_bias_once(network, height, width, grad):
    with torch.set_grad_enabled(grad):
        made = biases(network, height, width)
    assert len(made) == DEPTH
    assert {tensor.dtype for tensor in made} == {torch.float32}


def alive() -> tuple[int, int]:
    """Number and bytes of the tensors that Python knows."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)]
    return len(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def attributes(network: PartialNet) -> dict[str, list[str]]:
    """Names of the attributes, parameters and buffers of each module."""
    return {name: sorted([*vars(module), *module._parameters, *module._buffers])
            for name, module in network.named_modules()}


@torch.no_grad()
def test_inference_keeps_nothing(network):
    names, before = attributes(network), alive()
    for size in (*SIZES, (608, 608)):
        network(torch.randn(1, 3, *size))
    assert alive() == before
    assert attributes(network) == names
