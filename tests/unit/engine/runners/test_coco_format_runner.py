# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Settings of a config for data of one's own reach every place that needs them."""
import json

import pytest
from mmengine.config import Config

from partialnet_mm.datasets import SHAPE_CLASSES, write_shapes_dataset
from partialnet_mm.engine import spread_data_settings
from tests.helpers.libraries import ROOT


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('own')
    write_shapes_dataset(root, dict(train=2, val=1), size=64)
    (root / 'images').mkdir()
    return root


@pytest.fixture
def cfg(data_root):
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn/partialnet_t0_custom.py')
    cfg.data_root = str(data_root)
    return cfg


def heads(cfg):
    return cfg.model.roi_head.bbox_head.num_classes, cfg.model.roi_head.mask_head.num_classes


def test_three_options_reach_every_place(cfg, data_root):
    cfg.merge_from_dict(dict(classes=['box', 'disc'], checkpoint='some.pth'))
    spread = spread_data_settings(cfg)
    datasets = [spread.train_dataloader.dataset.dataset, spread.val_dataloader.dataset,
                spread.test_dataloader.dataset]
    for dataset in datasets:
        assert dataset.data_root == str(data_root)
        assert dataset.metainfo.classes == ('box', 'disc')
    assert heads(spread) == (2, 2)
    for evaluator in (spread.val_evaluator, spread.test_evaluator):
        assert evaluator.ann_file == str(data_root / 'annotations/instances_val.json')
    assert spread.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='some.pth', prefix='backbone.')
    # the config given stays as it was
    assert heads(cfg) == (80, 80) and cfg.train_dataloader.dataset.dataset.data_root == 'data/custom/'


def test_defaults_are_all_categories_and_random_weights(cfg):
    spread = spread_data_settings(cfg)
    assert spread.val_dataloader.dataset.metainfo.classes == SHAPE_CLASSES
    assert heads(spread) == (3, 3)
    assert 'init_cfg' not in spread.model.backbone


def test_one_class_as_text(cfg):
    cfg.classes = 'triangle'
    spread = spread_data_settings(cfg)
    assert spread.train_dataloader.dataset.dataset.metainfo.classes == ('triangle', )
    assert heads(spread) == (1, 1)


def test_unknown_class(cfg):
    cfg.classes = ['disc', 'star']
    with pytest.raises(ValueError, match=r"classes \['star'\] are not among .*instances_train.json.*'triangle'"):
        spread_data_settings(cfg)


@pytest.mark.parametrize('classes', [[], [1, 2], ['disc', '']])
def test_bad_classes(cfg, classes):
    cfg.classes = classes
    with pytest.raises(ValueError, match='classes must be names'):
        spread_data_settings(cfg)


def test_missing_root(cfg):
    cfg.data_root = 'nowhere/'
    with pytest.raises(FileNotFoundError, match=r"data_root 'nowhere/' is not a folder.*--cfg-options data_root="):
        spread_data_settings(cfg)


def test_root_without_annotations(cfg, tmp_path):
    cfg.data_root = str(tmp_path)
    with pytest.raises(FileNotFoundError, match='annotation file .*instances_train.json.* does not exist'):
        spread_data_settings(cfg)


def test_root_without_images(cfg, data_root):
    cfg.val_dataloader.dataset.data_prefix.img = 'pictures/'
    with pytest.raises(FileNotFoundError, match=r"image folder '.*pictures/' does not exist"):
        spread_data_settings(cfg)


@pytest.mark.parametrize('content', ['{"categories": [', json.dumps(dict(images=[])), '[]'])
def test_damaged_annotations(cfg, tmp_path, content):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'images').mkdir()
    for split in ('train', 'val'):
        (tmp_path / 'annotations' / f'instances_{split}.json').write_text(content)
    cfg.data_root = str(tmp_path)
    with pytest.raises(ValueError, match='instances_train.json.* is not in COCO format'):
        spread_data_settings(cfg)
