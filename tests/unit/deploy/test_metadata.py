# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What the file of a whole model says of the steps before the network."""
import json

import pytest
from mmengine.config import Config

from partialnet_mm.analysis.build import build_model
from partialnet_mm.deploy.metadata import as_texts, describe, preprocessing
from partialnet_mm.deploy.whole_model import whole_model
from tests.helpers.tiny_models import CLASSES, write_config

ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='GELU'))


def steps_of(scope, *transforms):
    pytest.importorskip(scope)
    return preprocessing(Config(dict(default_scope=scope, test_pipeline=[dict(type='LoadImageFromFile'), *transforms])))


@pytest.mark.parametrize('scope, transform, step', [
    ('mmdet', dict(type='Resize', scale=(1333, 800), keep_ratio=True), dict(
        type='resize', size=[1333, 800], keep_ratio=True, interpolation='bilinear', backend='cv2')),
    ('mmdet', dict(type='Pad', size=(640, 320), pad_val=dict(img=(1, 2, 3))),
     dict(type='pad', size=[640, 320], value=[3, 2, 1])),
    ('mmdet', dict(type='Pad', size_divisor=32), dict(type='pad', divisor=32, value=[0, 0, 0])),
    ('mmpretrain', dict(type='Resize', scale=64), dict(
        type='resize', size=[64, 64], keep_ratio=False, interpolation='bilinear', backend='cv2')),
    ('mmpretrain', dict(type='ResizeEdge', scale=256, backend='pillow', interpolation='bicubic'), dict(
        type='resize_edge', edge='short', size=256, interpolation='bicubic', backend='pillow')),
    ('mmpretrain', dict(type='FastResizeEdge', scale=248), dict(
        type='resize_edge', edge='short', size=248, interpolation='bicubic', backend='pillow')),
    ('mmpretrain', dict(type='CenterCrop', crop_size=224), dict(type='center_crop', size=[224, 224])),
])
def test_steps_of_the_test_pipeline(scope, transform, step):
    assert steps_of(scope, transform) == ([step], True)


def test_exif_follows_the_loader():
    loader = dict(type='LoadImageFromFile', color_type='color_ignore_orientation')
    cfg = Config(dict(default_scope='mmdet', test_pipeline=[loader, dict(type='PackDetInputs')]))
    pytest.importorskip('mmdet')
    assert preprocessing(cfg) == ([], False)


@pytest.mark.parametrize('transform, named', [
    (dict(type='RandomFlip', prob=1.), 'RandomFlip'), (dict(type='Resize', scale_factor=0.5), 'scale_factor'),
    (dict(type='Resize', scale='auto'), "has 'auto'"), (dict(type='Pad', pad_to_square=True), 'pad_to_square=True'),
    (dict(type='LoadImageFromFile', color_type='grayscale'), "color_type='grayscale'")])
def test_steps_that_a_reader_cannot_do_are_refused_by_name(transform, named):
    with pytest.raises(ValueError, match=named):
        steps_of('mmdet', transform)


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_description(tmp_path, kind):
    cfg = Config.fromfile(write_config(kind, tmp_path / 'config.py', ARCH))
    ann_file = tmp_path / 'instances.json'
    categories = [dict(id=9 - i, name=name) for i, name in enumerate(CLASSES[kind])]
    ann_file.write_text(json.dumps(dict(categories=categories)))
    cfg.merge_from_dict({'test_dataloader.dataset.data_root': '', 'test_dataloader.dataset.ann_file': str(ann_file)})
    model = build_model(cfg).eval()
    palette = [(i, 0, 9) for i in range(len(CLASSES[kind]))]
    whole = whole_model(model)
    found = describe(cfg, model, whole, dict(dataset_meta=dict(classes=CLASSES[kind], palette=palette)))
    assert found['classes'] == list(CLASSES[kind]) and found['palette'] == [list(colour) for colour in palette]
    assert found['category_ids'] == [9 - i for i in range(len(CLASSES[kind]))]
    assert found['task'] == ('detection' if kind == 'detector' else 'segmentation')
    assert found['channel_order'] == ('RGB' if kind == 'detector' else 'BGR')
    assert found['mask_threshold'] == 0.5 and found['score_threshold'] == 0.3 and found['exif'] is True
    assert found['versions'].keys() >= {'partialnet_mm', 'torch', 'mmengine', 'mmcv'}
    texts = as_texts(found)
    assert texts['task'] == found['task'] and json.loads(texts['outputs']) == list(whole.outputs)
    # Without a checkpoint that names them, classes are numbers where the data set has others.
    assert describe(cfg, model, whole, dict(dataset_meta=dict(classes=['one'])))['classes'][0] in ('0', 'disc')
