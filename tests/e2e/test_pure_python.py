# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The pure-Python config of docs/use_in_your_config.md goes through the tools: no type in it is a name."""
import pickle
import re

import pytest
import torch
from mmengine.config import Config

from partialnet_mm import swap_backbone
from partialnet_mm.datasets import write_shapes_dataset
from tests.helpers.libraries import ROOT, build_model
from tests.helpers.tool_scripts import run_main

BASE = '''
from mmcv.ops import nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import AspectRatioBatchSampler, CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, DetDataPreprocessor, ResNet, RetinaHead, RetinaNet
from mmdet.models.losses import FocalLoss, L1Loss
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder, MaxIoUAssigner, PseudoSampler
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import EpochBasedTrainLoop, LogProcessor, TestLoop
from mmengine.visualization import LocalVisBackend
from torch.nn import SyncBatchNorm
from torch.optim import SGD

default_scope = None
default_hooks = dict(
    timer=dict(type=IterTimerHook), logger=dict(type=LoggerHook), param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook), visualization=dict(type=DetVisualizationHook))
visualizer = dict(type=DetLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)], name='visualizer')
log_processor = dict(type=LogProcessor, by_epoch=True)
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
                           bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(type=ResNet, depth=18, norm_cfg=dict(type=SyncBatchNorm),
                  init_cfg=dict(type=PretrainedInit, checkpoint='resnet.pth')),
    neck=dict(type=FPN, in_channels=[64, 128, 256, 512], out_channels=16, start_level=1, num_outs=5,
              add_extra_convs='on_input'),
    bbox_head=dict(
        type=RetinaHead, num_classes=3, in_channels=16, stacked_convs=1, feat_channels=16,
        anchor_generator=dict(type=AnchorGenerator, octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
                              strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder), loss_cls=dict(type=FocalLoss), loss_bbox=dict(type=L1Loss)),
    train_cfg=dict(assigner=dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                   sampler=dict(type=PseudoSampler), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type=nms, iou_threshold=0.5), max_per_img=5))
pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations, with_bbox=True),
            dict(type=Resize, scale=(64, 64), keep_ratio=True),
            dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
data = dict(type=CocoDataset, data_root='DATA/', pipeline=pipeline, metainfo=dict(classes=('disc', 'box', 'triangle')))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    batch_sampler=dict(type=AspectRatioBatchSampler),
    dataset=dict(**data, ann_file='annotations/instances_train.json', data_prefix=dict(img='train/')))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(**data, ann_file='annotations/instances_val.json', data_prefix=dict(img='val/'), test_mode=True))
test_evaluator = dict(type=CocoMetric, ann_file='DATA/annotations/instances_val.json', metric='bbox')
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=AmpOptimWrapper, optimizer=dict(type=SGD, lr=0.01))
'''


@pytest.fixture
def config(tmp_path, tiny_arch):
    """The page's config with a tiny network, beside its base."""
    pytest.importorskip('mmdet')
    write_shapes_dataset(tmp_path / 'data', dict(train=2, val=2), size=64)
    (tmp_path / 'retinanet_r18.py').write_text(BASE.replace('DATA', str(tmp_path / 'data')))
    page = (ROOT / 'docs' / 'use_in_your_config.md').read_text()
    text = re.search(r'```python\n# pure_python.py\n(.*?)```', page, re.DOTALL).group(1)
    tiny = text.replace("arch='t0'", f'arch={tiny_arch!r}').replace('[64, 128, 256]', '[32, 64, 128]')
    assert tiny.count(repr(tiny_arch)) == tiny.count('[32, 64, 128]') == 1
    (tmp_path / 'pure_python.py').write_text(tiny)
    return tmp_path / 'pure_python.py'


def test_the_pages_config_goes_through_all_tools(monkeypatch, tmp_path, config, tiny_arch):
    """On a CPU its mixed precision becomes float32; what the training saves is tested as well as what was written."""
    work = tmp_path / 'work'
    assert run_main(monkeypatch, 'tools/train.py', config, '--work-dir', work) == 0
    if not torch.cuda.is_available():
        assert Config.fromfile(work / config.name).optim_wrapper.type == 'OptimWrapper'
    checkpoint = work / 'epoch_1.pth'
    for name, path in dict(written=config, saved=work / config.name).items():
        shown, found = tmp_path / f'{name}_pictures', tmp_path / f'{name}.pkl'
        assert run_main(monkeypatch, 'tools/test.py', path, checkpoint, '--work-dir', tmp_path / name, '--deploy',
                        '--out', found, '--show-dir', shown) == 0
        images = sorted(image.name for image in (tmp_path / 'data' / 'val').iterdir())
        assert sorted(picture.name for picture in shown.rglob('*') if picture.is_file()) == images
        assert [len(sample['pred_instances']['scores']) for sample in pickle.loads(found.read_bytes())] == [5, 5]
    assert run_main(monkeypatch, 'tools/infer.py', config, checkpoint, tmp_path / 'data' / 'val', '--out-dir',
                    tmp_path / 'found', '--device', 'cpu') == 0
    assert len(list((tmp_path / 'found' / 'pictures').iterdir())) == 2

    swapped = swap_backbone(Config.fromfile(tmp_path / 'retinanet_r18.py'), tiny_arch)
    assert swapped.model.backbone.out_indices == (1, 2, 3) and swapped.model.backbone.norm_cfg == dict(type='SyncBN')
    swapped.dump(tmp_path / 'swapped.py')
    read = Config.fromfile(tmp_path / 'swapped.py')
    assert read.model.neck.in_channels == [32, 64, 128] and read.model.test_cfg.nms.type == 'nms'
    read.default_scope = 'mmdet'
    names = dict(build_model(read).named_parameters())
    assert sum(name.startswith('backbone.') for name in names) > 10
