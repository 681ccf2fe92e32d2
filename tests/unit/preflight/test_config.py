# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The data of a config is found through its wrappers; folders of classes are checked."""
import pytest
from mmengine.config import Config
from PIL import Image

from partialnet_mm.engine import PreflightHook, apply_own_data_settings
from partialnet_mm.preflight import check_config, check_image_folder, image_folders, leaf_datasets
from tests.helpers.coco_data import write_coco_data
from tests.helpers.libraries import ROOT


@pytest.fixture
def config(tmp_path):
    """A config on two images to train and one to validate."""
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn/partialnet_t0_custom.py')
    cfg.data_root = str(write_coco_data(tmp_path, dict(train=2, val=1)))
    return apply_own_data_settings(cfg)


def test_a_config_is_checked_through_its_wrappers(config, tmp_path):
    assert check_config(config) == []
    config.model.roi_head.mask_head.num_classes = 80
    config.val_evaluator.ann_file = str(tmp_path / 'annotations/instances_train.json')
    kinds = [(finding.kind, finding.where) for finding in check_config(config)]
    assert kinds == [('number of classes', 'model mask_head')] * 2 + [('evaluator', 'val_evaluator')]


def test_the_hook_stops_a_training(config, tmp_path):
    class Logger:
        info = warning = staticmethod(lambda text: None)

    class Runner:
        cfg = config
        logger = Logger

    PreflightHook().before_run(Runner)
    (tmp_path / 'images/train_1.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r'1 errors in the data; no training was started(?s:.*)\.jpg: the file has 0'):
        PreflightHook().before_run(Runner)


def folder_of_classes(root):
    for name in ('blue', 'red'):
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.new('RGB', (8, 8), name).save(root / name / f'{i}.png')
    return root


def test_class_folders(tmp_path):
    root = folder_of_classes(tmp_path / 'train')
    assert check_image_folder(str(root), 2) == []
    assert [f.kind for f in check_image_folder(str(root), 1000)] == ['number of classes']
    (root / 'red' / '1.png').write_bytes(b'no image')
    (root / 'green').mkdir()
    findings = check_image_folder(str(root), 3)
    assert {(f.kind, f.file) for f in findings} == {
        ('class without images', str(root / 'green')), ('image broken', str(root / 'red' / '1.png'))}
    assert check_image_folder(str(tmp_path / 'no'), 3)[0].kind == 'image folder missing'
    (tmp_path / 'none').mkdir()
    assert check_image_folder(str(tmp_path / 'none'))[0].kind == 'no classes'


def test_a_pretraining_config(tmp_path):
    config = Config.fromfile(ROOT / 'configs/pretrain/partialnet_t0_in1k.py')
    for split in ('train', 'val'):
        folder_of_classes(tmp_path / split)
        config[f'{split}_dataloader'].dataset.data_root = str(tmp_path)
    config.test_dataloader = config.val_dataloader
    assert [f.kind for f in check_config(config)] == ['number of classes'] * 2
    config.model.head.num_classes = 2
    assert check_config(config) == []


@pytest.mark.parametrize('name, kinds', [
    ('MyDataset', 1), ('semantic_fpn/semantic_fpn_partialnet_t0_shapes.py', 2)])
def test_unknown_data_is_noted(name, kinds):
    """Of the segmentor: training data, and what validation and test share."""
    config = Config(dict(model={}, train_dataloader=dict(dataset=dict(type=name, data_root='here')))) \
        if name == 'MyDataset' else Config.fromfile(ROOT / 'configs' / name)
    findings = check_config(config)
    assert [(finding.kind, finding.note) for finding in findings] == [('not checked', True)] * kinds
    kind = name if name == 'MyDataset' else 'BaseSegDataset'
    assert f'data of type {kind} is not known here' in findings[0].text


def test_leaves_and_folders():
    one = dict(type='CocoDataset', data_root='a', data_prefix=dict(img='b/'))
    two = dict(type='ImageNet', data_root='c', split='val')
    nested = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[one, dict(dataset=two)]))
    assert list(leaf_datasets(nested)) == [one, two] and list(leaf_datasets(one)) == [one]
    assert image_folders(nested) == ['a/b/', 'c/val']
    assert image_folders(dict(type='X', data_prefix='d')) == ['d'] and image_folders(dict(type='X')) == []
