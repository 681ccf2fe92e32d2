# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A tiny random batch for any model of mmdet, mmseg or mmpretrain, and what the model makes of it."""
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn


def random_batch(cfg: Config, height: int = 64, width: int = 96, batch_size: int = 2) -> dict:
    """Images with annotations of the kind that the config's training pipeline loads."""
    rng = np.random.default_rng(0)
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs
        masks = any(step.get('with_mask') for step in _steps(cfg.train_dataloader))
        return demo_mm_inputs(batch_size, [[3, height, width]] * batch_size, num_items=[2] * batch_size,
                              num_classes=3, with_mask=masks)
    images = torch.from_numpy(rng.integers(0, 256, (batch_size, 3, height, width), dtype=np.uint8))
    if cfg.default_scope == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample
        samples = [SegDataSample(
            gt_sem_seg=PixelData(data=torch.from_numpy(rng.integers(0, 2, (1, height, width)))),
            metainfo=dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width)))
            for _ in range(batch_size)]
        return dict(inputs=list(images), data_samples=samples)
    from mmpretrain.structures import DataSample
    return dict(inputs=images, data_samples=[DataSample().set_gt_label(i) for i in range(batch_size)])


def shrink(model: Config) -> None:
    """Makes what is behind the backbone small, and training the same for each batch; modules and their types stay."""
    small = dict(fc_out_channels=64, num_queries=50, num_proposals=50, nms_pre=50, max_per_img=50, num=32,
                 size=(64, 96))
    for node in _steps(model):
        for key, value in node.items():
            if key in small and isinstance(value, (int, tuple, list)):
                node[key] = small[key]
            elif key in ('encoder', 'decoder') and 'num_layers' in value:
                value['num_layers'] = 1
        node.pop('batch_augments', None)  # they enlarge images
        if node.get('mode') == 'slide':
            node['mode'] = 'whole'
    if 'augments' in (model.get('train_cfg') or {}):
        model.train_cfg = None  # no mixing of images


def loss_of(cfg: Config, model: nn.Module, batch: dict) -> torch.Tensor:
    """The summed loss in training."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        losses = model.train()(**model.data_preprocessor(batch, True), mode='loss')
        return model.parse_losses(losses)[0]


def predictions_of(cfg: Config, model: nn.Module, batch: dict) -> list:
    """What the model predicts for each image."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        return model.eval()(**model.data_preprocessor(batch, False), mode='predict')


def _steps(node: Any) -> Iterator[dict]:
    """All dicts inside a config."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from _steps(child)
