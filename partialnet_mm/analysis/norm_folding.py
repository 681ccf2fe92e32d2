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

#: Layers whose weight takes up the scale of its output channels in its first dimension.
LINEAR_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class FoldedNorms(NamedTuple):
    """Names of the batch norms that are gone, and of those that are left because no layer could take them up."""

    folded: list[str]
    left: list[str]


def draw_norms(model: nn.Module, forward: Callable[[], object]) -> None:
    """Gives batch norms the statistics of what they see, and random weights.

    A network that has just been built has norms that are almost the identity:
    whether they were folded rightly cannot be seen then, and without them the
    values inside of a deep network fade or explode.

    Args:
        model: Its parts' modes are afterwards what they were.
        forward: Runs the model once, with at least two images.
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
    """Folds each batch norm that follows a convolution or linear layer into it.

    What follows what is observed in one run, so any Python code may be in the
    forward functions. A norm is folded where it gets the output of such a
    layer as it is, and nothing else does. timm's norms with an activation
    leave it in their place.

    Args:
        model: In evaluation mode; changed in place.
        forward: Runs the model once.

    Returns:
        FoldedNorms: Names of the norms.
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
        owner, _, child = name.rpartition('.')
        setattr(modules[owner], child, _what_remains(norm))
        folded.append(name)
    return FoldedNorms(folded, [name for name in norms if name not in folded])


def _what_remains(norm: _BatchNorm) -> nn.Module:
    # timm's BatchNormAct2d: dropout, then an activation; either may be an identity.
    parts = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else nn.Identity()


class _Observer(TorchFunctionMode):
    """Sees which layer's output each batch norm gets, and how often each of them is used."""

    def __init__(self, layers: dict[int, nn.Module]) -> None:
        super().__init__()
        self.layers = layers
        self.runs: Counter = Counter()  # of weights and of statistics, by id
        self.outputs: dict[int, tuple[Tensor, nn.Module]] = {}  # the tensor is kept, or its id would be given again
        self.uses: Counter = Counter()
        self.inputs: dict[int, Tensor] = {}

    def __torch_function__(self,
                           func: Callable,
                           types: object,
                           args: tuple = (),
                           kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = tree_flatten((args, kwargs))[0]
        if any(isinstance(value, Tensor) for value in tree_flatten(result)[0]):  # x.shape and x.dim() use nothing
            self.uses.update({id(value) for value in given if isinstance(value, Tensor)})
        if func is F.batch_norm:
            statistics = args[1] if len(args) > 1 else kwargs['running_mean']
            self.runs[id(statistics)] += 1
            self.inputs[id(statistics)] = args[0]
        elif func in (F.conv1d, F.conv2d, F.conv3d, F.linear):
            weight = args[1] if len(args) > 1 else kwargs['weight']
            self.runs[id(weight)] += 1
            # a linear layer has its channels last, and a norm in the second dimension
            if id(weight) in self.layers and (func is not F.linear or result.dim() == 2):
                self.outputs[id(result)] = (result, self.layers[id(weight)])
                self.uses[id(result)] = 0  # those counted had its id before
        return result

    def find_source(self, norm: _BatchNorm) -> nn.Module | None:
        """The layer whose output this norm alone gets; None where there is none."""
        statistics = id(norm.running_mean)
        if norm.running_mean is None or self.runs[statistics] != 1:
            return None
        x = self.inputs[statistics]
        if id(x) not in self.outputs or self.uses[id(x)] != 1:
            return None
        layer = self.outputs[id(x)][1]
        return layer if self.runs[id(layer.weight)] == 1 else None
