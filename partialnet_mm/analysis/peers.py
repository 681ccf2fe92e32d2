# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Networks by name, of this project and of other libraries, in their form for deployment."""
import difflib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten

from ..config_types import complete_types
from ..models import PartialNet, merge_model
from ..zoo import config_path
from .build import Detector, build_model
from .norm_folding import draw_norms, fold_batch_norms

#: Libraries of classifiers: the prefix of a name.
LIBRARIES = ('timm', 'torchvision', 'mmpretrain')
#: Relative difference that folding may make to the output in float32. A wrong folding makes one near 1.
TOLERANCE = 1e-3


class MergedNorms(NamedTuple):
    """Numbers of the batch norms that were merged, and of those that are left."""

    merged: int
    left: int


def find_config(name: str) -> Path:
    """The path of a config: 'my.py', or 'mmdet:mask_rcnn/NAME.py' for one that an OpenMMLab library ships."""
    library, _, path = name.rpartition(':')
    spec = importlib.util.find_spec(library) if library else None
    found = Path(spec.origin).parent / '.mim' / 'configs' / path if spec else Path(path)
    if not found.is_file() or (library and not spec):
        raise ValueError(f'there is no config {name!r}')
    return found


def check_name(name: str) -> None:
    """Raises a ValueError if no library has a network of this name, or the library is not installed."""
    if name.endswith('.py'):
        find_config(name)
        return
    ours = [f'partialnet_{arch}' for arch in PartialNet.arch_settings]
    if name in ours:
        return
    library, _, short = name.rpartition(':')
    library = library or 'timm'
    if library not in LIBRARIES:
        raise ValueError(f'network {name!r} is of the library {library!r}; allowed are {", ".join(LIBRARIES)}')
    if importlib.util.find_spec(library) is None:
        raise ValueError(f'network {name!r} needs {library}, which is not installed')
    names, _ = _models_of(library)
    if short not in names:
        near = difflib.get_close_matches(short, names + ours, n=3)
        hint = f'; near it are {near}' if near else ''
        raise ValueError(f'there is no network {short!r} in {library}{hint}. Allowed are partialnet_ARCH with ARCH one '
                         f'of {", ".join(PartialNet.arch_settings)}, a name of timm, torchvision:NAME, '
                         'mmpretrain:NAME and the path of a config')


def _models_of(library: str) -> tuple[list[str], Callable[[str], nn.Module]]:
    """The names of a library's classifiers, and the function that builds one with random weights."""
    if library == 'timm':
        import timm
        return timm.list_models(), timm.create_model
    if library == 'torchvision':
        from torchvision import models
        return models.list_models(), partial(models.get_model, weights=None)
    import mmpretrain
    return mmpretrain.list_models(task='Image Classification'), partial(mmpretrain.get_model, pretrained=False)


def build_network(name: str) -> nn.Module:
    """A function of images (B, 3, H, W) by name, with random weights, in evaluation mode, its norms as in training.

    'partialnet_s' is the variant as in its pretraining config, 'fasternet_s' a name of timm, 'my.py' a config of a
    classifier, segmentor or detector. Classifiers have 1000 classes by default.
    """
    check_name(name)
    if name.endswith('.py'):
        return build_config(complete_types(Config.fromfile(find_config(name))))
    if name.startswith('partialnet_'):
        arch = name[len('partialnet_'):]
        cfg = Config.fromfile(config_path(f'pretrain/partialnet_{arch.partition("-")[0]}_in1k.py'))
        cfg.model.backbone.arch = arch
        return build_config(cfg)
    library, _, short = name.rpartition(':')
    return _models_of(library or 'timm')[1](short).eval()


def build_config(cfg: Config) -> nn.Module:
    """The model of a config as a function of images, in evaluation mode."""
    if cfg.get('default_scope') == 'mmpretrain':
        cfg.model.train_cfg = None  # batch augmentation is for training
    model = build_model(cfg).eval()
    return Detector(model) if cfg.default_scope == 'mmdet' else model


def merge_network(model: nn.Module, shape: Sequence[int]) -> MergedNorms:
    """Merges all batch norms of a network on the CPU that can be merged, as for deployment, in place.

    The network's own method comes first (PartialNet, RepVGG, LeViT, ...), then each norm after a convolution or linear
    layer is folded. The norms get random weights and statistics before, so that a wrong merge changes the output for
    images of ``shape`` (H, W), which raises a RuntimeError.
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
        pairs = zip(tree_flatten(model(images))[0], tree_flatten(expected)[0])
        # Unlike Python's, torch's maximum is NaN where any is.
        difference = torch.stack([(mine - other).norm() / other.norm() for mine, other in pairs]).max().item()
    if not difference < TOLERANCE:
        raise RuntimeError(f'without its batch norms {type(model).__name__} computes something else: its output '
                           f'differs by {difference:.1e} of its norm, allowed are {TOLERANCE:.0e}')
    left = _count_norms(model)
    return MergedNorms(before - left, left)


def _count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())
