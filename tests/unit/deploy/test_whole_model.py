# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Whole models as functions of images of bytes: the same answers as the host's test gives, in PyTorch."""
import pytest
import torch
from mmengine.config import Config
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.deploy.whole_model import (
    AdaptiveAveragePool,
    Normalize,
    Upsample,
    as_host_batch,
    min_size,
    whole_model,
)
from tests.helpers.tiny_models import write_config

ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='GELU'))


def build(kind, tmp_path, randomize_norms, **changes):
    cfg = Config.fromfile(write_config(kind, tmp_path / 'config.py', ARCH))
    cfg.merge_from_dict(changes)
    torch.manual_seed(0)
    return randomize_norms(build_model(cfg)).eval()


def random_images(*shape):
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@torch.no_grad()
def both(model, images):
    return whole_model(model)(images), model.test_step(as_host_batch(images, model.data_preprocessor))


def test_classifier(tmp_path, randomize_norms):
    model = build('classifier', tmp_path, randomize_norms)
    (probabilities, ), samples = both(model, random_images(2, 40, 50))
    assert torch.allclose(probabilities, torch.stack([sample.pred_score for sample in samples]))
    assert not torch.allclose(probabilities[0], probabilities[1], atol=1e-3)


@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), dict(mode='slide', crop_size=(48, 64), stride=(20, 30))],
                         ids=['whole', 'slide'])
@pytest.mark.parametrize('size', [(97, 70), (40, 33)])
def test_segmentor(tmp_path, randomize_norms, test_cfg, size):
    model = build('segmentor', tmp_path, randomize_norms)
    model.test_cfg = Config(test_cfg)
    (class_map, ), samples = both(model, random_images(2, *size))
    wanted = torch.stack([sample.pred_sem_seg.data[0] for sample in samples])
    assert class_map.dtype == torch.uint8 and len(wanted.unique()) > 1
    assert torch.equal(class_map.long(), wanted)


@pytest.mark.parametrize('changes', [
    {'model.test_cfg.rcnn.score_thr': 0.},
    {'model.test_cfg.rcnn.score_thr': 1., 'model.test_cfg.rpn.min_bbox_size': 4},
    {'model.test_cfg.rcnn.score_thr': 0., 'model.roi_head.bbox_head.reg_class_agnostic': True,
     'model.roi_head.mask_head.class_agnostic': True, 'model.test_cfg.rcnn.nms.class_agnostic': True},
], ids=['each class', 'no object', 'agnostic'])
def test_mask_rcnn(tmp_path, randomize_norms, changes):
    model = build('detector', tmp_path, randomize_norms, **changes)
    (boxes, scores, labels, masks), samples = both(model, random_images(2, 70, 90))
    empty = changes['model.test_cfg.rcnn.score_thr'] == 1
    assert labels.shape == scores.shape == boxes.shape[:2] == masks.shape[:2] == (2, 0 if empty else 10)
    for index, sample in enumerate(samples):
        wanted = sample.pred_instances
        assert torch.allclose(boxes[index], wanted.bboxes, atol=1e-3)
        assert torch.allclose(scores[index], wanted.scores) and torch.equal(labels[index], wanted.labels)
    if not empty:
        assert masks.min() > 0 and masks.max() < 1


def test_a_classifier_and_a_padded_model_name_their_least_size(tmp_path, randomize_norms):
    assert min_size(whole_model(build('classifier', tmp_path, randomize_norms))) == 32
    assert min_size(whole_model(build('detector', tmp_path, randomize_norms))) == 1


@pytest.mark.parametrize('kind, changes, named', [
    ('detector', {'model.test_cfg.rcnn.nms.type': 'soft_nms'}, 'soft_nms'),
    ('detector', {'model.roi_head.type': 'PointRendRoIHead'}, 'PointRendRoIHead'),
    ('detector', {'model.roi_head.bbox_roi_extractor.roi_layer':
                  dict(_delete_=True, type='RoIPool', output_size=7)}, 'RoIPool'),
    ('detector', {'model.roi_head.bbox_roi_extractor.roi_layer.pool_mode': 'max'}, "pool_mode='max'"),
    ('classifier', {'model.backbone.token_mixers': 'dpconv'}, 'dpconv_to_fixed.py'),
])
def test_what_cannot_be_expressed_is_refused_by_name(tmp_path, randomize_norms, kind, changes, named):
    with pytest.raises(ValueError, match=named):
        whole_model(build(kind, tmp_path, randomize_norms, **changes))


def test_a_preprocessor_that_does_something_else_is_refused():
    mmdet = pytest.importorskip('mmdet.models')

    class Halved(mmdet.DetDataPreprocessor):

        def forward(self, data, training=False):
            data = super().forward(data, training)
            return dict(data, inputs=data['inputs'] / 2)

    given = dict(mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True, pad_size_divisor=16)
    assert Normalize(mmdet.DetDataPreprocessor(**given)).order == 'RGB'
    assert Normalize(mmdet.DetDataPreprocessor(**dict(given, bgr_to_rgb=False))).order == 'BGR'
    with pytest.raises(ValueError, match='Halved cannot be expressed'):
        Normalize(Halved(**given))


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (6, 6)])
def test_adaptive_pooling(size):
    x = torch.randn(2, 3, 11, 7)
    assert torch.allclose(AdaptiveAveragePool(*size)(x), nn.AdaptiveAvgPool2d(size)(x), atol=1e-6)


def test_upsampling():
    mmseg = pytest.importorskip('mmseg.models.utils')
    x = torch.randn(1, 2, 5, 7)
    host = mmseg.Upsample(scale_factor=2, mode='bilinear', align_corners=False)
    assert torch.equal(Upsample(host)(x), host(x))
    with pytest.raises(ValueError, match=r'scale_factor=1\.5 cannot be expressed'):
        Upsample(mmseg.Upsample(scale_factor=1.5))
