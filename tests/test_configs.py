# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Every config builds; those of the paper say what its tables say."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p.relative_to(ROOT / 'configs').as_posix() for p in (ROOT / 'configs').glob('*/*.py')
                 if p.parent.name != '_base_')

# Table 7: learning rate, stochastic depth. Parameters in M as counted with the official modules.
TABLE_7 = {'s': (2e-4, 0.15, 46.99), 'm': (1e-4, 0.2, 79.18), 'l': (1e-4, 0.3, 122.07)}


def load(name: str) -> Config:
    pytest.importorskip('mmdet' if name.startswith('mask_rcnn') else 'mmpretrain')
    return Config.fromfile(ROOT / 'configs' / name)


def build_model(cfg: Config) -> torch.nn.Module:
    from mmengine.registry import MODELS
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        init_default_scope(cfg.default_scope)
        return MODELS.build(cfg.model)


def test_all_configs_are_found():
    assert len(CONFIGS) >= 11
    assert {f'mask_rcnn/partialnet_{arch}_1x.py' for arch in 'sml'} <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_is_self_contained_and_builds(name):
    cfg = load(name)
    assert cfg.custom_imports == dict(imports=['partialnet_mm'], allow_failed_imports=False)
    assert cfg.auto_scale_lr.enable is False
    assert cfg.default_scope in ('mmdet', 'mmpretrain', 'mmseg')
    model = build_model(cfg)
    assert type(model.backbone).__name__ == 'PartialNet'
    if hasattr(model, 'with_rpn'):
        assert list(model.neck.in_channels) == list(model.backbone.channels)


@pytest.mark.parametrize('arch', TABLE_7)
def test_mask_rcnn_1x_is_table_7(arch):
    lr, drop_path_rate, params = TABLE_7[arch]
    cfg = load(f'mask_rcnn/partialnet_{arch}_1x.py')
    backbone = cfg.model.backbone
    assert backbone.arch == arch and backbone.drop_path_rate == drop_path_rate
    assert backbone.norm_eval is True and backbone.out_indices == (0, 1, 2, 3)
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint=f'work_dirs/partialnet_{arch}_in1k/epoch_300.pth', prefix='backbone.')

    # Optimizer: AdamW, weight decay 1e-4, no clipping.
    assert cfg.optim_wrapper == dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-4))
    # Schedule: 12 epochs, a tenth at 8 and 11, linear warm-up over 500 iterations.
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop' and cfg.train_cfg.max_epochs == 12
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, warm_up.end, warm_up.by_epoch) == ('LinearLR', 0, 500, False)
    assert (decay.type, decay.milestones, decay.gamma, decay.by_epoch) == ('MultiStepLR', [8, 11], 0.1, True)
    # Batch: 2 on each of 8 GPUs.
    assert cfg.train_dataloader.batch_size == 2 and cfg.auto_scale_lr.base_batch_size == 16
    # Resolution: shorter side 800, longer 1333, in training and test; flips as in mmdet's 1x base.
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.val_dataloader.dataset.pipeline):
        resize = [t for t in pipeline if t.type == 'Resize']
        assert resize == [dict(type='Resize', scale=(1333, 800), keep_ratio=True)]
    assert [t.type for t in cfg.train_dataloader.dataset.pipeline] == [
        'LoadImageFromFile', 'LoadAnnotations', 'Resize', 'RandomFlip', 'PackDetInputs']
    assert cfg.train_dataloader.dataset.pipeline[3].prob == 0.5
    assert not any(t.type == 'RandomFlip' for t in cfg.val_dataloader.dataset.pipeline)
    # Data: COCO 2017 with box and mask AP.
    assert cfg.train_dataloader.dataset.data_root == 'data/coco/'
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert cfg.val_evaluator.ann_file == 'data/coco/annotations/instances_val2017.json'
    assert cfg.val_evaluator.metric == ['bbox', 'segm']

    model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=0.02)


@pytest.mark.parametrize('arch, channels', [('t0', 256), ('t1', 384), ('t2', 512), ('s', 768), ('m', 1024),
                                            ('l', 1280)])
def test_pretrain_head_is_the_papers(arch, channels):
    cfg = load(f'pretrain/partialnet_{arch}_in1k.py')
    model = build_model(cfg)
    assert model.backbone.channels[-1] == channels
    hidden, output = model.head.layers[0].fc, model.head.layers[-1].fc
    assert (hidden.in_features, hidden.out_features) == (channels, 1280)
    assert (output.in_features, output.out_features) == (1280, 1000)
    activation = 'GELU' if arch in ('t0', 't1') else 'ReLU'
    assert type(model.head.layers[0].act).__name__ == activation
    assert type(model.backbone.stages[0][0].mlp.act).__name__ == activation
