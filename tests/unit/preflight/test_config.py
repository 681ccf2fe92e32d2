# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The data of a config is found through its wrappers; folders of classes are checked."""
import json

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image

from partialnet_mm.engine import PreflightHook, apply_own_data_settings
from partialnet_mm.preflight import check_config, coco, errors_in, image_folders, leaf_datasets
from tests.helpers.coco_data import write_coco_data
from tests.helpers.libraries import ROOT


@pytest.fixture(autouse=True)
def records(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('records')
    monkeypatch.setenv('PARTIALNET_MM_CACHE', str(folder))
    return folder


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


def test_a_pretraining_config(tmp_path):
    config = Config.fromfile(ROOT / 'configs/cifar10/partialnet_t0_cifar10.py')
    for split in ('train', 'test'):
        folder_of_classes(tmp_path / split)
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.data_root = str(tmp_path)
    findings = check_config(config, cached=False)
    assert {(f.kind, f.note) for f in findings} == {('number of classes', True)}  # 10 outputs for 2 folders do train
    config.model.head.num_classes = 2
    assert check_config(config, cached=False) == []
    (tmp_path / 'train/red/1.png').write_bytes(b'no image')
    assert [(f.kind, f.file) for f in check_config(config, cached=False)] == [
        ('image broken', str(tmp_path / 'train/red/1.png'))]


@pytest.mark.parametrize('kind', ['MyDataset', 'CIFAR10'])
def test_unknown_data_is_noted(kind):
    config = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dict(type=kind, data_root='here'))))
    finding, = check_config(config)
    assert finding.note and finding.text == f'data of type {kind} is not known here'


def test_a_failure_of_the_check_is_a_note(config, monkeypatch):
    def fail(*args):
        raise AttributeError('no such thing')

    monkeypatch.setattr('partialnet_mm.preflight.config.check_coco_file', fail)
    findings = check_config(config)
    assert findings and all(finding.note and 'failed with AttributeError: no such thing' in finding.text
                            for finding in findings)


@pytest.mark.parametrize('shape', [
    dict(roi_head=dict(mask_head=None)), dict(roi_head=None), dict(roi_head=dict(bbox_head=[None, dict()])),
    dict(bbox_head='x'), None, [], dict(data_preprocessor=None), dict(data_preprocessor=dict(mean=None))])
def test_no_shape_of_a_model_ends_the_check(config, shape):
    config.model = shape
    assert check_config(config, cached=False) == []


# The record of what was checked

@pytest.fixture
def reads(monkeypatch):
    """Paths of the annotation files that are read."""
    paths = []
    read = coco.CocoFile
    monkeypatch.setattr(coco, 'CocoFile', lambda path: (paths.append(path), read(path))[1])
    return paths


def test_each_file_is_read_once_and_not_again_until_it_changes(config, tmp_path, reads):
    assert check_config(config) == [] and len(reads) == 2  # validation and test share theirs
    assert check_config(config) == [] and len(reads) == 2
    assert check_config(config, cached=False) == [] and len(reads) == 4
    (tmp_path / 'images/more.txt').write_text('')
    assert check_config(config) == [] and len(reads) == 6
    (tmp_path / 'annotations/instances_val.json').touch()
    assert check_config(config) == [] and len(reads) == 8
    Image.new('RGB', (10, 10)).save(tmp_path / 'images/train_1.jpg')
    assert [finding.kind for finding in check_config(config)] == ['image size'] and len(reads) == 10
    assert [finding.kind for finding in check_config(config)] == ['image size'] and len(reads) == 12  # errors stay


@pytest.mark.parametrize('change', [
    lambda cfg: cfg.model.roi_head.bbox_head.update(num_classes=80),
    lambda cfg: cfg.train_dataloader.dataset.dataset.pipeline[0].update(color_type='unchanged'),
    lambda cfg: cfg.val_evaluator.update(metric='bbox')])
def test_a_changed_config_is_checked_again(config, reads, change):
    check_config(config)
    change(config)
    check_config(config)
    assert len(reads) == 4


def test_other_settings_of_the_check_are_another_check(config, reads):
    check_config(config, splits=['train'])
    check_config(config, images=None, splits=['train'])
    check_config(config, splits=['val'])
    assert len(reads) == 3
    config.optim_wrapper.optimizer.lr = 1.
    check_config(config, splits=['val'])
    assert len(reads) == 3


def test_notes_are_kept(config, tmp_path, reads):
    path = tmp_path / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['area'] = 0
    path.write_text(json.dumps(content))
    first = check_config(config)
    assert [finding.kind for finding in first] == ['area zero']
    assert check_config(config) == first and len(reads) == 2


@pytest.mark.parametrize('damage', [b'', b'{"files": {}}', b'[]', b'\xff'])
def test_a_damaged_record_is_no_record(config, records, reads, damage):
    check_config(config)
    for record in records.iterdir():
        record.write_bytes(damage)
    assert check_config(config) == [] and len(reads) == 4


@pytest.mark.parametrize('folder', ['/dev/null/no', '/proc/no'])
def test_a_folder_that_takes_no_record_is_no_error(config, monkeypatch, reads, folder):
    monkeypatch.setenv('PARTIALNET_MM_CACHE', folder)
    assert check_config(config) == check_config(config) == [] and len(reads) == 4


def test_records_do_not_pile_up(config, records, monkeypatch):
    monkeypatch.setattr('partialnet_mm.preflight.files.KEPT', 2)
    for images in (1, 2, 3, 4):
        check_config(config, images=images)
    assert len(list(records.iterdir())) == 2


def test_leaves_and_folders():
    one = dict(type='CocoDataset', data_root='a', data_prefix=dict(img='b/'))
    two = dict(type='ImageNet', data_root='c', split='val')
    nested = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[one, dict(dataset=two)]))
    assert list(leaf_datasets(nested)) == [one, two] and list(leaf_datasets(one)) == [one]
    assert image_folders(nested) == ['a/b/', 'c/val']
    assert image_folders(dict(type='X', data_prefix='d')) == ['d'] and image_folders(dict(type='X')) == []


@pytest.mark.parametrize('asks', ['img_path', 'what_only_training_has'])
def test_a_loader_of_the_users_own_is_used(config, tmp_path, asks):
    @TRANSFORMS.register_module(force=True)
    class ReadRaw(BaseTransform):
        def transform(self, results):
            assert results[asks]
            return dict(results, img=np.zeros((600, 800, 3), np.uint8))

    for dataset in (config.train_dataloader.dataset.dataset, config.val_dataloader.dataset,
                    config.test_dataloader.dataset):
        dataset.pipeline[0] = dict(type='ReadRaw')
    for image in (tmp_path / 'images').iterdir():
        image.write_bytes(b'raw')
    findings = check_config(config)
    assert errors_in(findings) == [] and bool(findings) == (asks != 'img_path')
