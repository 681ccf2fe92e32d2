# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Detectors other than the paper's differ from mmdet's own configs in the backbone and what it asks for only."""

import pytest
import torch
from mmengine.config import Config

from tests.helpers.batches import loss_of, predictions_of, random_batch
from tests.helpers.config_differences import MISSING, differences, settings_of
from tests.helpers.libraries import ROOT, build_model, parameters_without_gradient, shipped_config

SGD_TO_ADAMW = {
    'optim_wrapper.optimizer.type': ('SGD', 'AdamW'),
    'optim_wrapper.optimizer.momentum': (0.9, MISSING),
}
# ResNet's maps of stages 2 to 4 have 512, 1024 and 2048 channels.
FROM_STAGE_2 = {
    'model.neck.start_level': (1, 0),
    'model.neck.in_channels': ([256, 512, 1024, 2048], [192, 384, 768]),
}
RGB = {
    'model.data_preprocessor.mean': ([103.53, 116.28, 123.675], [123.675, 116.28, 103.53]),
    'model.data_preprocessor.std': ([57.375, 57.12, 58.395], [58.395, 57.12, 57.375]),
    'model.data_preprocessor.bgr_to_rgb': (False, True),
}
#: Config: mmdet's, what the two differ in as (theirs, ours), the arguments of the backbone beside arch and weights.
DETECTORS: dict[str, tuple[str, dict, dict]] = {
    'cascade_mask_rcnn/cascade_mask_rcnn_partialnet_s_1x.py': (
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', {
            **SGD_TO_ADAMW,
            'optim_wrapper.optimizer.lr': (0.02, 2e-4),
            'model.neck.in_channels': ([256, 512, 1024, 2048], [96, 192, 384, 768]),
        }, dict(out_indices=(0, 1, 2, 3), norm_eval=True)),
    'retinanet/retinanet_partialnet_s_1x.py': (
        'retinanet/retinanet_r50_fpn_1x_coco.py', {
            **SGD_TO_ADAMW, **FROM_STAGE_2, 'optim_wrapper.optimizer.lr': (0.01, 1e-4),
        }, dict(out_indices=(1, 2, 3), norm_eval=True)),
    'atss/atss_partialnet_s_1x.py': (
        'atss/atss_r50_fpn_1x_coco.py', {
            **SGD_TO_ADAMW, **FROM_STAGE_2, 'optim_wrapper.optimizer.lr': (0.01, 1e-4),
        }, dict(out_indices=(1, 2, 3), norm_eval=True)),
    'rtmdet/rtmdet_partialnet_s_300e.py': (
        'rtmdet/rtmdet_m_8xb32-300e_coco.py', {
            **RGB,
            # mmdet's is that of another schedule: 8 GPUs with 32 images are 256.
            'auto_scale_lr.base_batch_size': (16, 256),
        }, dict(out_indices=(1, 2, 3), norm_cfg=dict(type='SyncBN'))),
    'dino/dino_partialnet_s_12e.py': (
        'dino/dino-4scale_r50_8xb2-12e_coco.py', {
            'model.neck.in_channels': ([512, 1024, 2048], [192, 384, 768]),
            'auto_scale_lr.enable': (MISSING, False),
        }, dict(out_indices=(1, 2, 3), norm_eval=True)),
    'mask_rcnn/partialnet_s_3x_ms.py': (
        'mask_rcnn/mask-rcnn_r50_fpn_ms-poly-3x_coco.py', {
            **SGD_TO_ADAMW,
            'optim_wrapper.optimizer.lr': (0.02, 2e-4),
            'model.neck.in_channels': ([256, 512, 1024, 2048], [96, 192, 384, 768]),
            'val_evaluator.format_only': (MISSING, False),
            'test_evaluator.format_only': (MISSING, False),
        }, dict(out_indices=(0, 1, 2, 3), norm_eval=True)),
}


@pytest.mark.parametrize('name', DETECTORS)
def test_differs_from_mmdets_config_in_what_the_backbone_asks_for(name):
    shipped, expected, _ = DETECTORS[name]
    theirs = Config.fromfile(shipped_config('mmdet', shipped))
    ours = Config.fromfile(ROOT / 'configs' / name)
    assert differences(settings_of(theirs), settings_of(ours)) == expected


@pytest.mark.parametrize('name', DETECTORS)
def test_backbone_is_partialnet_s_with_its_pretraining(name):
    *_, arguments = DETECTORS[name]
    backbone = Config.fromfile(ROOT / 'configs' / name).model.backbone
    assert backbone == dict(
        type='PartialNet', arch='s', drop_path_rate=0.15, **arguments,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/partialnet_s_in1k/epoch_300.pth', prefix='backbone.'))


@pytest.mark.parametrize('name', DETECTORS)
def test_trains_every_parameter_and_predicts(name):
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(ROOT / 'configs' / name)
    # Random weights, and no block dropped by chance.
    cfg.model.backbone.update(init_cfg=None, drop_path_rate=0.)
    if 'num_queries' in cfg.model:
        cfg.model.num_queries = 50  # of a picture that has no 900 places
    heads = cfg.model.get('roi_head', {}).get('bbox_head', [])
    for head in heads if isinstance(heads, list) else [heads]:
        head.fc_out_channels = 64  # for speed
    model = build_model(cfg)
    loss = loss_of(cfg, model, random_batch(cfg))
    assert torch.isfinite(loss)
    loss.backward()
    assert parameters_without_gradient(model.backbone) == []
    found = [sample.pred_instances for sample in predictions_of(cfg, model, random_batch(cfg))]
    assert len(found) == 2 and all(torch.isfinite(instances.bboxes).all() for instances in found)
