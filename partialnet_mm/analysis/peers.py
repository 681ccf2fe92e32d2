# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Classifiers by name, of this project and of other libraries, in the form that they are deployed in."""
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten

from ..models import PartialNet
from ..models.merge_model import merge_model
from ..zoo import config_path
from .build import build_model
from .norm_folding import draw_norms, fold_batch_norms

#: Before the name of a network, and what has it.
LIBRARIES = ('timm', 'torchvision', 'mmpretrain')
#: Relative difference that folding may make to the output, in float32. A norm folded wrongly makes one near 1.
TOLERANCE = 1e-3


class MergedNorms(NamedTuple):
    """How many batch norms are gone, and how many are left."""

    merged: int
    left: int


def check_name(name: str) -> None:
    """Says what is wrong with the name of a network, before anything is built.

    Args:
        name: See :func:`build_network`.

    Raises:
        ValueError: If no library has it, or the library is not installed.
    """
    library, _, short = name.rpartition(':')
    if name.endswith('.py'):
        if not Path(name).is_file():
            raise ValueError(f'there is no config {name!r}')
        return
    known = [f'partialnet_{arch}' for arch in PartialNet.arch_settings]
    if name in known:
        return
    library = library or 'timm'
    if library not in LIBRARIES:
        raise ValueError(f'network {name!r} is of the library {library!r}; allowed are {", ".join(LIBRARIES)}')
    if importlib.util.find_spec(library) is None:
        raise ValueError(f'network {name!r} needs {library}, which is not installed')
    names = _names(library)
    if short not in names:
        near = difflib.get_close_matches(short, names + known, n=3)
        hint = f'; near it are {near}' if near else ''
        raise ValueError(f'there is no network {short!r} in {library}{hint}. Allowed are partialnet_ARCH with ARCH one '
                         f'of {", ".join(PartialNet.arch_settings)}, a name of timm, torchvision:NAME, '
                         'mmpretrain:NAME and the path of a config')


def _names(library: str) -> list[str]:
    if library == 'timm':
        import timm
        return timm.list_models()
    if library == 'torchvision':
        import torchvision
        return torchvision.models.list_models()
    import mmpretrain
    return mmpretrain.list_models(task='Image Classification')


def build_network(name: str) -> nn.Module:
    """Builds a classifier of 1000 classes with random weights.

    Args:
        name: 'partialnet_s' for a variant of this project, as its
            pretraining config has it; a name of timm, such as 'fasternet_s';
            'torchvision:NAME'; 'mmpretrain:NAME'; the path of a config, 'my.py',
            with as many classes as it says.

    Returns:
        nn.Module: In evaluation mode, its norms as in training. Takes images
        (B, 3, H, W), returns logits.

    Raises:
        ValueError: If there is no such network.
    """
    check_name(name)
    library, _, short = name.rpartition(':')
    if name.endswith('.py'):
        return _build_config(Config.fromfile(name))
    if name.startswith('partialnet_'):
        arch = name[len('partialnet_'):]
        cfg = Config.fromfile(config_path(f'pretrain/partialnet_{arch.partition("-")[0]}_in1k.py'))
        cfg.model.backbone.arch = arch
        return _build_config(cfg)
    if library == 'torchvision':
        import torchvision
        return torchvision.models.get_model(short, weights=None).eval()
    if library == 'mmpretrain':
        import mmpretrain
        return mmpretrain.get_model(short, pretrained=False).eval()
    import timm
    return timm.create_model(short).eval()


def _build_config(cfg: Config) -> nn.Module:
    cfg.model.train_cfg = None  # batch augmentation is for training
    return build_model(cfg).eval()


def merge_network(model: nn.Module, shape: Sequence[int]) -> MergedNorms:
    """Brings a network into the form that it is deployed in: all batch norms that can be are merged.

    First what the network merges itself (PartialNet, RepVGG, LeViT, ...), then
    each norm after a convolution or linear layer. Its batch norms get random
    weights and statistics before, so that the comparison of outputs can fail.

    Args:
        model: On the CPU, in evaluation mode; changed in place.
            Returns a tensor or several: a backbone serves as well.
        shape: (H, W) of the images to compare with.

    Returns:
        MergedNorms: Numbers of norms.

    Raises:
        RuntimeError: If the merged network computes something else. What a
            network raises for a shape that it does not take is its own.
    """
    images = torch.randn(2, 3, *shape)
    before = _count_norms(model)
    draw_norms(model, lambda: model(images))
    with torch.no_grad():
        expected = model(images)
        if any(hasattr(module, 'switch_to_deploy') for module in model.modules()):
            merge_model(model)
        elif any(hasattr(module, name) for module in model.modules() for name in ('fuse', 'reparameterize')):
            from timm.utils import reparameterize_model
            reparameterize_model(model, inplace=True)
        fold_batch_norms(model, lambda: model(images))
        difference = _relative_difference(model(images), expected)
    if not difference < TOLERANCE:
        raise RuntimeError(f'without its batch norms {type(model).__name__} computes something else: its output '
                           f'differs by {difference:.1e} of its length, allowed are {TOLERANCE:.0e}')
    left = _count_norms(model)
    return MergedNorms(before - left, left)


def _relative_difference(mine: object, expected: object) -> float:
    pairs = zip(tree_flatten(mine)[0], tree_flatten(expected)[0])
    return max(((one - other).norm() / other.norm()).item() for one, other in pairs)


def _count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())
