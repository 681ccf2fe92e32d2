# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Batch norms folded into the layers before them, in networks of any library."""
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

#: Layers whose weight has its output channels in the first dimension.
LINEAR_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class FoldedNorms(NamedTuple):
    """Names of the batch norms that were folded, and of those that no layer could take."""

    folded: list[str]
    left: list[str]


def draw_norms(model: nn.Module, forward: Callable[[], object]) -> None:
    """Gives batch norms random weights and the statistics of their inputs, by one run of at least two images.

    A network that has just been built has norms that are almost the identity, so a wrong folding would not show.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm, norm.training, norm.momentum) for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        forward()
    for norm, training, momentum in kept:
        norm.train(training)
        norm.momentum = momentum


@torch.no_grad()
def fold_batch_norms(model: nn.Module, forward: Callable[[], object]) -> FoldedNorms:
    """Folds each batch norm that follows a convolution or linear layer into it, in place, in evaluation mode.

    One observed run by ``forward`` shows which norm follows which layer, so the model may hold any Python code. A norm
    is folded where it alone uses the unchanged output of such a layer. The activation inside timm's ``BatchNormAct2d``
    stays.
    """
    modules = dict(model.named_modules())
    norms = {name: module for name, module in modules.items() if isinstance(module, _BatchNorm)}
    layers = {id(module.weight): module for module in modules.values() if isinstance(module, LINEAR_LAYERS)}
    with _Observer(layers) as observer:
        forward()
    folded = []
    for name, norm in norms.items():
        source = observer.find_source(norm)
        if source is None:
            continue
        fuse = fuse_linear_bn_weights if isinstance(source, nn.Linear) else fuse_conv_bn_weights
        source.weight, source.bias = fuse(
            source.weight, source.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        owner, _, key = name.rpartition('.')
        # BatchNormAct2d has dropout and an activation, either of which may be an identity.
        rest = [child for child in norm.children() if not isinstance(child, nn.Identity)]
        setattr(modules[owner], key, rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity())
        folded.append(name)
    return FoldedNorms(folded, [name for name in norms if name not in folded])


class _Observer(TorchFunctionMode):
    """Records which layer's output each batch norm gets, and how often each of them is used."""

    def __init__(self, layers: dict[int, nn.Module]) -> None:
        super().__init__()
        self.layers = layers
        self.runs: Counter = Counter()  # of weights and of statistics, by id
        self.outputs: dict[int, tuple[Tensor, nn.Module]] = {}  # keeps the tensor, or its id would be given again
        self.uses: Counter = Counter()
        self.inputs: dict[int, Tensor] = {}

    def __torch_function__(self, func: Callable, types: object, args: tuple = (),
                           kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = tree_flatten((args, kwargs))[0]
        if any(isinstance(value, Tensor) for value in tree_flatten(result)[0]):  # x.shape and x.dim() are no use
            self.uses.update({id(value) for value in given if isinstance(value, Tensor)})
        if func is F.batch_norm:
            statistics = args[1] if len(args) > 1 else kwargs['running_mean']
            self.runs[id(statistics)] += 1
            self.inputs[id(statistics)] = args[0]
        elif func in (F.conv1d, F.conv2d, F.conv3d, F.linear):
            weight = args[1] if len(args) > 1 else kwargs['weight']
            self.runs[id(weight)] += 1
            # A linear layer has its channels last, a norm in the second dimension.
            if id(weight) in self.layers and (func is not F.linear or result.dim() == 2):
                self.outputs[id(result)] = (result, self.layers[id(weight)])
                self.uses[id(result)] = 0  # what was counted had this id before
        return result

    def find_source(self, norm: _BatchNorm) -> nn.Module | None:
        """The layer whose output this norm alone gets, or None."""
        statistics = id(norm.running_mean)
        if norm.running_mean is None or self.runs[statistics] != 1:
            return None
        x = self.inputs[statistics]
        if id(x) not in self.outputs or self.uses[id(x)] != 1:
            return None
        layer = self.outputs[id(x)][1]
        return layer if self.runs[id(layer.weight)] == 1 else None
