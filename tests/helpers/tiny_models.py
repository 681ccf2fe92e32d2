# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Configs and checkpoints of tiny models of each library, for tools that take any."""
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from partialnet_mm.analysis.build import build_model
from tests.helpers.libraries import ROOT

LIBRARIES = dict(classifier='mmpretrain', detector='mmdet', segmentor='mmseg')
CLASSES = dict(classifier=('blue', 'green', 'red'), detector=('disc', 'box', 'triangle'),
               segmentor=('sky', 'wood', 'lake', 'road'))

CONFIGS = dict(
    classifier=f"""
_base_ = '{ROOT}/configs/pretrain/partialnet_t0_in1k.py'
data_preprocessor = dict(num_classes=3)
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{{arch}})),
    head=dict(num_classes=3, in_channels=128, mid_channels=[24]))
""",
    detector=f"""
_base_ = '{ROOT}/configs/mask_rcnn/partialnet_t0_shapes.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{{arch}})),
    neck=dict(in_channels=[16, 32, 64, 128]),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=20), rcnn=dict(max_per_img=10)))
""",
    segmentor=f"""
_base_ = '{ROOT}/configs/_base_/runtime/default.py'
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=32),
    backbone=dict(type='PartialNet', arch={{arch}}, out_indices=(0, 1, 2, 3)),
    neck=dict(type='FPN', in_channels=[16, 32, 64, 128], out_channels=16, num_outs=4),
    decode_head=dict(
        type='FPNHead', in_channels=[16] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32], channels=16,
        num_classes=4, norm_cfg=dict(type='BN')),
    test_cfg=dict(mode='whole'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
visualizer = dict(type='SegLocalVisualizer', name='visualizer')
""")


def write_config(kind: str, path: Path, arch: dict) -> Path:
    """Writes the config of a 'classifier', 'detector' or 'segmentor'; skips where its library is not installed."""
    pytest.importorskip(LIBRARIES[kind])
    path.write_text(CONFIGS[kind].format(arch=repr(arch)))
    return path


def write_checkpoint(kind: str, config: Path, path: Path,
                     randomize_norms: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Saves a model of a config as a training does; returns it in evaluation mode.

    Its weights are torch's own first ones, under which, unlike mmengine's, the outputs depend on the image.
    """
    model = randomize_norms(build_model(Config.fromfile(config))).eval()
    torch.save(dict(
        meta=dict(epoch=3, iter=7, dataset_meta=dict(classes=CLASSES[kind], palette=[(i, 0, 9) for i in range(4)])),
        state_dict=model.state_dict(), optimizer=dict(state={}), message_hub=dict()), path)
    return model


def write_model(kind: str, folder: Path, arch: dict,
                randomize_norms: Callable[[nn.Module], nn.Module]) -> tuple[Path, Path]:
    """Writes config and checkpoint of a tiny model."""
    config = write_config(kind, folder / f'{kind}.py', arch)
    write_checkpoint(kind, config, folder / f'{kind}.pth', randomize_norms)
    return config, folder / f'{kind}.pth'


def write_small_classifier(folder: Path, arch: dict,
                           randomize_norms: Callable[[nn.Module], nn.Module]) -> tuple[Path, Path]:
    """Config and checkpoint of a tiny classifier whose test pipeline resizes to 64 x 64."""
    config, checkpoint = write_model('classifier', folder, arch, randomize_norms)
    config.write_text(config.read_text() + 'test_dataloader = dict(dataset=dict(pipeline=[\n'
                      "    dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]))\n")
    return config, checkpoint


def noise_images(folder: Path) -> Path:
    """A folder of a class, 'red', with two photographs of noise: a.png, wide, and b.png, high."""
    import cv2
    (folder / 'red').mkdir()
    rng = np.random.default_rng(0)
    for name, size in (('a.png', (60, 40)), ('b.png', (40, 60))):
        cv2.imwrite(str(folder / 'red' / name), cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), size))
    return folder / 'red'
