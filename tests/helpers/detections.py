# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Detectors with random weights that find something, and what their ONNX files find against what mmdet finds."""
import functools
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn import functional as F

from partialnet_mm import swap_backbone
from partialnet_mm.deploy.onnx_export import run_session, session_of, whole_to_onnx
from partialnet_mm.deploy.whole_model import WholeModel, as_host_batch
from tests.helpers.libraries import ROOT, build_model, shipped_config

#: Widths 16, 32, 64 and 128.
ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='ReLU'))


def detector_config(name: str, arch: dict | None = None) -> Config:
    """A config of this repository, ``configs/...``, or one of mmdet with T0 as its backbone; or either with ``arch``."""
    if name.startswith('configs/'):
        cfg = Config.fromfile(ROOT / name)
        cfg.model.backbone.update(init_cfg=None, drop_path_rate=0.)
    else:
        cfg = Config.fromfile(shipped_config('mmdet', name))
        if arch is None:
            cfg = swap_backbone(cfg, 't0')
    if arch is not None:
        cfg.model.backbone = dict(type='PartialNet', arch=arch, out_indices=(1, 2, 3))
        cfg.model.neck.in_channels = [arch['embed_dim'] * factor for factor in (2, 4, 8)]
        if 'start_level' in cfg.model.neck:
            cfg.model.neck.start_level = 0
    return replace_values(cfg, dict(SyncBN='BN'))


def replace_values(cfg: Config, values: dict) -> Config:
    """Replaces each string of a config's model that is a key of ``values``."""
    def replaced(node):
        if isinstance(node, dict):
            return type(node)({key: replaced(value) for key, value in node.items()})
        if isinstance(node, (list, tuple)):
            return type(node)(map(replaced, node))
        return values.get(node, node) if isinstance(node, str) else node
    cfg.model = replaced(cfg.model)
    return cfg


def build_detector(cfg: Config, logits: Sequence[str], spread: float = 1.5, mean: float = -2.) -> nn.Module:
    """A detector with torch's first weights. Its scores differ between pixels and images.

    Args:
        cfg: The config.
        logits: Names, in the head, of the layers (or lists of layers) that compute classes.
        spread: Standard deviation of their outputs. Defaults to 1.5.
        mean: Mean of their outputs. Defaults to -2.
    """
    model = build_model(cfg, init=False).eval()
    if hasattr(model, 'level_embed'):  # mmdet leaves it as the memory was
        nn.init.normal_(model.level_embed)
    layers = [layer for name in logits for layer in model.bbox_head.get_submodule(name).modules()
              if isinstance(layer, (nn.Conv2d, nn.Linear))]
    seen = {}
    handles = [layer.register_forward_hook(lambda layer, _, output: seen.setdefault(layer, []).append(output))
               for layer in layers]
    for _ in range(2):  # the first scores of a transformer choose the queries of the later ones
        seen.clear()
        predictions(model, noise(2, 192, 256))
        for layer, outputs in seen.items():
            values = torch.cat([output.transpose(1, -1).flatten(0, -2) for output in outputs])
            factor = spread / values.std()
            layer.weight.data *= factor
            layer.bias.data = (layer.bias - values.mean()) * factor + mean
    for handle in handles:
        handle.remove()
    return model


def noise(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images (B, H, W, 3) of coarse and fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(batch, 3, 5, 7, generator=generator), (height, width), mode='bilinear')
    fine = torch.rand(batch, 3, height, width, generator=generator)
    return ((.6 * coarse + .4 * fine) * 255).byte().permute(0, 2, 3, 1).contiguous()


def predictions(model: nn.Module, images: Tensor) -> list:
    """What mmdet finds in RGB images (B, H, W, 3) of bytes: pred_instances of each image."""
    with torch.no_grad(), DefaultScope.overwrite_default_scope('mmdet'):
        data = model.data_preprocessor(as_host_batch(images, model.data_preprocessor), False)
        return [sample.pred_instances for sample in model(**data, mode='predict')]


def assert_same_objects(outputs: Sequence[Tensor], wanted: list, pixels: float = 0.02) -> None:
    """The file's answers are mmdet's, in the order of their scores, in the form that files have."""
    boxes, scores, labels = outputs
    most = max(map(len, wanted))
    assert boxes.shape == (len(wanted), most, 4) and scores.shape == labels.shape == (len(wanted), most)
    assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)
    for i, want in enumerate(wanted):
        used = len(want)
        assert (labels[i, used:] == -1).all() and (scores[i, used:] == 0).all() and (boxes[i, used:] == 0).all()
        torch.testing.assert_close(scores[i, :used], want.scores, rtol=0, atol=2e-5)
        # Objects with nearly the same score may change places.
        same = ((scores[i, :used, None] - want.scores).abs() < 4e-5) & (labels[i, :used, None] == want.labels)
        same &= (boxes[i, :used, None] - want.bboxes).abs().amax(2) < pixels
        assert same.any(0).all() and same.any(1).all(), f'{(~same.any(0)).sum()} of {used} objects of image {i} differ'


def compare(find: Callable[[Tensor], Sequence[Tensor]], model: nn.Module, images: Tensor) -> list[int]:
    """Asserts that a function of images finds what mmdet finds; returns the number of objects of each image."""
    wanted = predictions(model, images)
    with torch.no_grad():
        assert_same_objects(find(images), wanted)
    return [len(want) for want in wanted]


def finder(whole: WholeModel, onnx_file: bool) -> Callable[[float], Callable[[Tensor], Sequence[Tensor]]]:
    """From a threshold of scores to what finds objects: the model itself in PyTorch, or its ONNX file."""
    file = whole_to_onnx(whole) if onnx_file else None

    def with_threshold(threshold: float) -> Callable[[Tensor], Sequence[Tensor]]:
        if file is None:
            whole.network.score_threshold.fill_(threshold)
            return whole
        (initializer, ) = [tensor for tensor in file.graph.initializer if tensor.name.endswith('score_threshold')]
        initializer.CopyFrom(onnx.numpy_helper.from_array(np.float32(threshold), initializer.name))
        return functools.partial(run_session, session_of(file))
    return with_threshold
