# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Trainings of seconds with the configs of docs/fine_tuning.md."""
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from partialnet_mm.datasets import write_shapes_dataset
from tests.helpers.libraries import ROOT

ARCH = dict(_delete_=True, embed_dim=8, depths=(1, 1, 2, 1), num_heads=2, act_cfg=dict(type='ReLU'))

# Mask R-CNN on drawn images, an epoch of two iterations. Few detections, for short validations.
BASE = '''
_base_ = {config!r}
model = dict(
    backbone=dict(arch={arch!r}),
    neck=dict(in_channels=[8, 16, 32, 64]),
    test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(max_per_img=2)))
param_scheduler = []
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05))
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root={data!r}, filter_cfg=dict(min_size=0)))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={data!r}))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={data!r} + '/annotations/instances_val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
log_level = 'ERROR'
'''


@pytest.fixture(scope='session')
def blocks() -> dict[str, str]:
    """The blocks of the page by the name in their first line, ``# ema.py``."""
    page = (ROOT / 'docs' / 'fine_tuning.md').read_text()
    return dict(re.findall(r'```python\n# (\w+\.py)\n(.*?)```', page, re.DOTALL))


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """Eight images of 64 x 64 for training, two for validation."""
    pytest.importorskip('mmdet')
    root = tmp_path_factory.mktemp('shapes')
    write_shapes_dataset(root, dict(train=8, val=2), size=64)
    return root


@pytest.fixture
def write_config(tmp_path, blocks, shapes) -> Callable[..., Path]:
    """Writes configs, each the base of the next: a tiny Mask R-CNN, then blocks of the page and more lines."""
    count = itertools.count()

    def save(text: str) -> Path:
        path = tmp_path / f'config_{next(count)}.py'
        path.write_text(text)
        return path

    def write(*names: str, more: str = '', data: Path = shapes) -> Path:
        config = ROOT / 'configs' / 'mask_rcnn' / 'partialnet_t0_shapes.py'
        text = BASE.format(config=str(config), arch=ARCH, data=str(data))
        for name in names:
            base = save(text)
            text = f'_base_ = {base.name!r}\n{blocks[name]}'
        return save(text + more)

    return write


@pytest.fixture
def build_runner(tmp_path, write_config) -> Callable[..., Runner]:
    """Builds a runner for a config of :func:`write_config`, changed by the options of a command line."""
    count = itertools.count()

    def build(*names: str, more: str = '', **options) -> Runner:
        cfg = Config.fromfile(write_config(*names, more=more))
        cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
        # mmengine keeps loggers and visualizers by their names
        cfg.experiment_name = cfg.visualizer.name = f'{tmp_path.name}_{next(count)}'
        cfg.setdefault('work_dir', str(tmp_path / 'work'))
        return Runner.from_cfg(cfg)

    return build

