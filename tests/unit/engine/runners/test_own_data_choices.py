# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What own-data configs choose from the data and the machine, and what they leave to the user."""
import copy
import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from partialnet_mm.engine import CocoFormatRunner, apply_own_data_settings
from partialnet_mm.engine.runners.own_data_choices import (
    DataFacts,
    Machine,
    choices_in_use,
    fill_choices,
    has_choices,
    this_machine,
)
from tests.helpers.libraries import ROOT

DETECTOR = 'configs/faster_rcnn/faster_rcnn_partialnet_t0_custom.py'
SEGMENTOR = 'configs/semantic_fpn/semantic_fpn_partialnet_t0_custom.py'
OWN_DATA = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs').glob('*/*_custom.py'))
CPU = Machine(gpu_memory=None, cores=8, processes=1, local_processes=1)
SMALL = DataFacts(images=14, width=800, height=600, small_object=74)


@functools.cache
def read(name):
    return Config.fromfile(ROOT / name)


def load(name):
    """A config of its own; reading the file takes most of the time of these tests."""
    return copy.deepcopy(read(name))


def filled(name=DETECTOR, data=SMALL, machine=CPU, **options):
    cfg = load(name)
    cfg.merge_from_dict(options)
    fill_choices(cfg, data, machine)
    return cfg


@pytest.mark.parametrize('name', OWN_DATA)
def test_nothing_is_left_to_choose(name):
    cfg = load(name)
    assert cfg.own_data is True and has_choices(cfg)
    fill_choices(cfg, SMALL, CPU)
    assert not has_choices(cfg)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.end, decay.end, decay.milestones) == (33, 12, [8, 11])
    assert cfg.optim_wrapper.optimizer.lr == 1e-3 and cfg.train_dataloader.dataset.times == 8
    assert cfg.auto_scale_lr.base_batch_size == cfg.train_dataloader.batch_size == 4


@pytest.mark.parametrize('images, checkpoint, passes', [
    (1, None, 1356), (14, None, 96), (100, None, 24), (100, 'a.pth', 12), (5000, None, 24), (5000, 'a.pth', 12)])
def test_epochs_by_the_size_of_the_data(images, checkpoint, passes):
    cfg = filled(data=SMALL._replace(images=images), checkpoint=checkpoint)
    assert 12 * cfg.train_dataloader.dataset.times == passes


@pytest.mark.parametrize('memory, processes, batch, workers', [
    (None, 1, 4, 1), (None, 2, 2, 1), (None, 8, 1, 1), (6, 1, 2, 8), (16, 1, 4, 8), (24, 2, 4, 4), (79, 1, 16, 8)])
def test_batch_and_workers_by_the_machine(memory, processes, batch, workers):
    cfg = filled(machine=Machine(memory, 8, processes, processes))
    assert cfg.train_dataloader.batch_size == batch
    assert {cfg[f'{split}_dataloader'].num_workers for split in ('train', 'val', 'test')} == {workers}
    total = batch * processes
    assert cfg.auto_scale_lr.base_batch_size == total
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-3 * (total / 4)**0.5, rel=0.02)
    # The smallest data sets get enough steps whatever the batch is.
    assert 300 < cfg.train_dataloader.dataset.times * 12 * 14 / total < 400


@pytest.mark.parametrize('data, scale', [
    ((800, 600, 74), (649, 390)), ((600, 800, 74), (649, 390)),
    ((4000, 3000, 2000), (600, 360)),  # not below 480 pixels
    ((1920, 1080, 20), (1333, 750)),  # not above 1333
    ((1000, 1000, 20), (1000, 800)),  # nor 800
    ((100, 100, 10), (250, 200)),  # not enlarged more than twice
    ((640, 480, None), (800, 480)),
], ids=str)
def test_image_scale_by_the_objects(data, scale):
    cfg = filled(data=DataFacts(100, *data))
    assert cfg.test_dataloader.dataset.pipeline[1].scale == scale
    scales = cfg.train_dataloader.dataset.dataset.pipeline[2].scales
    assert scales == [(scale[0], round(scale[1] * factor)) for factor in (0.8, 0.9, 1.0, 1.1)]


@pytest.mark.parametrize('size, crop', [((800, 600), 512), ((256, 300), 256), ((100, 70), 64), ((40, 40), 64)])
def test_crop_of_segmentation(size, crop):
    cfg = filled(SEGMENTOR, DataFacts(100, *size))
    assert cfg.model.data_preprocessor.size == (crop, crop)
    assert cfg.train_dataloader.dataset.dataset.pipeline[3].crop_size == (crop, crop)


def test_what_the_user_sets_stays():
    cfg = filled(**{
        'train_dataloader.batch_size': 2, 'train_dataloader.dataset.times': 3, 'train_cfg.max_epochs': 24,
        'optim_wrapper.optimizer.lr': 0.5, 'param_scheduler.0.end': 7,
        'test_dataloader.dataset.pipeline.1.scale': (64, 64)})
    assert (cfg.train_dataloader.batch_size, cfg.train_dataloader.dataset.times) == (2, 3)
    assert cfg.optim_wrapper.optimizer.lr == 0.5 and cfg.param_scheduler[0].end == 7
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (64, 64)
    # What depends on it follows.
    assert (cfg.param_scheduler[1].end, cfg.param_scheduler[1].milestones) == (24, [16, 22])
    assert cfg.auto_scale_lr.base_batch_size == 2
    assert filled(**{'train_cfg.max_epochs': 1}).param_scheduler[1].milestones == [1]


def test_processes_of_the_job(monkeypatch):
    for name in ('WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'SLURM_NTASKS', 'SLURM_NTASKS_PER_NODE'):
        monkeypatch.delenv(name, raising=False)
    assert this_machine()[2:] == (1, 1) and this_machine().cores >= 1
    monkeypatch.setenv('WORLD_SIZE', '16')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '8')
    assert this_machine()[2:] == (16, 8)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda index: SimpleNamespace(total_memory=24 * 2**30))
    assert this_machine().gpu_memory == 24


def write_coco(root):
    (root / 'images').mkdir(parents=True)
    (root / 'annotations').mkdir()
    content = dict(categories=[dict(id=1, name='cat')], images=[
        dict(id=number, file_name=f'{number}.jpg', width=width, height=480)
        for number, width in enumerate((640, 640, 1000, 'wide'))], annotations=[
        *(dict(id=number + 1, image_id=0, category_id=1, bbox=[0, 0, 10 * number, 10 * number])
          for number in range(1, 21)), dict(id=30, bbox=None), dict(id=31, bbox=[1, 2, 'a', 3])])
    for split in ('train', 'val'):
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))
    return root


def test_the_facts_of_annotations(tmp_path, monkeypatch):
    cfg = load(DETECTOR)
    cfg.data_root = str(write_coco(tmp_path / 'own data'))
    applied = apply_own_data_settings(cfg)
    # Of 20 boxes with sides of 10 to 200, two are below the third.
    assert applied.own_data_choices.data == dict(images=4, width=640, height=480, small_object=30)
    chosen = choices_in_use(applied)
    assert chosen['train_dataloader.dataset.times'] == applied.train_dataloader.dataset.times == 28
    assert 'test_dataloader.dataset.pipeline.1.scale' in chosen

    applied.train_dataloader.dataset.times = 5
    assert set(chosen) - set(choices_in_use(applied)) == {'train_dataloader.dataset.times'}
    logged = []
    monkeypatch.setattr(Runner, 'train', lambda self: 'trained')
    runner = CocoFormatRunner.__new__(CocoFormatRunner)
    runner.cfg, runner.logger = applied, SimpleNamespace(info=logged.append)
    assert runner.train() == 'trained'
    assert 'optim_wrapper.optimizer.lr=0.001' in logged[0] and 'times' not in logged[0]


def test_a_guess_without_the_data_is_a_warning(tmp_path, monkeypatch):
    cfg = load(DETECTOR)
    cfg.data_root, cfg.classes = str(tmp_path / 'gone'), ['cat']
    logged = []
    monkeypatch.setattr('partialnet_mm.engine.runners.own_data.print_log', lambda text, **_: logged.append(text))
    applied = apply_own_data_settings(cfg, ())
    assert len(logged) == 1 and 'its image scale is a guess' in logged[0]
    assert applied.test_dataloader.dataset.pipeline[1].scale == (1333, 800)


@pytest.fixture
def segmentor(tmp_path):
    for split, count in (('train', 3), ('val', 1)):
        for folder, ending, mode in (('img', '.jpg', 'RGB'), ('ann', '.png', 'L')):
            (tmp_path / folder / split / 'more').mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.zeros((40, 60) + (3, ) * (mode == 'RGB'), np.uint8)).save(
                    tmp_path / folder / split / 'more' / f'{number}{ending}')
    cfg = load(SEGMENTOR)
    cfg.merge_from_dict(dict(img_dir=str(tmp_path / 'img'), ann_dir=str(tmp_path / 'ann'), classes=['ground', 'cat']))
    return cfg


def test_settings_of_a_segmentor(segmentor, tmp_path):
    segmentor.merge_from_dict(dict(palette=[[0, 0, 0], [255, 0, 9]], checkpoint='a.pth'))
    applied = apply_own_data_settings(segmentor)
    assert applied.model.decode_head.num_classes == 2
    assert applied.model.backbone.init_cfg.checkpoint == 'a.pth'
    for dataset, split in ((applied.train_dataloader.dataset.dataset, 'train'), (applied.val_dataloader.dataset, 'val'),
                           (applied.test_dataloader.dataset, 'val')):
        assert dataset.data_root == str(tmp_path / 'img')
        assert dataset.data_prefix == dict(img_path=split, seg_map_path=str(tmp_path / 'ann' / split))
        assert (dataset.img_suffix, dataset.seg_map_suffix) == ('.jpg', '.png')
        assert dataset.metainfo == dict(classes=('ground', 'cat'), palette=[(0, 0, 0), (255, 0, 9)])
    assert applied.own_data_choices.data == dict(images=3, width=60, height=40, small_object=None)
    assert apply_own_data_settings(applied).to_dict() == applied.to_dict()
    # Without its data, and with data of another place.
    (tmp_path / 'img').rename(tmp_path / 'moved')
    assert apply_own_data_settings(applied, ()).to_dict() == applied.to_dict()
    applied.img_dir = str(tmp_path / 'moved')
    assert apply_own_data_settings(applied).test_dataloader.dataset.data_root == str(tmp_path / 'moved')


def remove(path):
    return lambda root: (root / path).unlink()


@pytest.mark.parametrize('changes, prepare, error, message', [
    (dict(img_dir=None), None, ValueError, 'img_dir must be a folder, got None'),
    (dict(ann_dir=3), None, ValueError, 'ann_dir must be a folder, got 3'),
    (dict(img_dir='nowhere'), None, FileNotFoundError, "'nowhere/train' does not exist: img_dir is 'nowhere'"),
    (dict(classes=None), None, ValueError, 'classes must name the labels 0, 1, 2'),
    (dict(classes=['a', 'a']), None, ValueError, 'classes must differ'),
    (dict(palette=[[0, 0, 0]]), None, ValueError, 'for each of 2 classes'),
    (dict(palette=[[0, 0, 0], [0, 0, 300]]), None, ValueError, 'values from 0 to 255'),
    ({}, remove('ann/val/more/0.png'), ValueError, "1 of 1 images in .*val. have no label image in .* first 'more/0'"),
    ({}, lambda root: (root / 'img/train/a.tif').touch(), ValueError, r"several kinds, \{'.tif': 1, '.jpg': 3\}"),
    ({}, remove('img/val/more/0.jpg'), FileNotFoundError, "has no images that end in '.jpg'"),
], ids=range(10))
def test_wrong_settings_of_a_segmentor(segmentor, tmp_path, changes, prepare, error, message):
    segmentor.update(changes)
    if prepare:
        prepare(tmp_path)
    with pytest.raises(error, match=message):
        apply_own_data_settings(segmentor)
