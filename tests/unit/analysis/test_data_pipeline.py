# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import itertools
from argparse import ArgumentParser

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from partialnet_mm.analysis.data_pipeline import (
    PipelineTimes,
    add_arguments,
    find_photographs,
    plain_pipeline,
    report,
    resolutions_of,
    time_pipelines,
    workers_needed,
)
from tests.helpers.coco_data import write_coco_data
from tests.helpers.libraries import ROOT

CONFIG = ROOT / 'configs/pretrain/partialnet_s_in1k.py'


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photographs')
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{index}.JPEG')
    return folder


def arguments(*values):
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(value) for value in values])


def test_plain_pipelines_are_those_of_mmpretrain_and_mmdet():
    pretraining = plain_pipeline(Config.fromfile(CONFIG).train_dataloader.dataset.pipeline)
    assert [step['type'] for step in pretraining] == [
        'LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'RandAugment', 'PackInputs']
    assert pretraining[1] == dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic')
    assert pretraining[2] == dict(type='RandomFlip', prob=0.5, direction='horizontal')
    coco = Config.fromfile(ROOT / 'configs/mask_rcnn/partialnet_s_1x.py').train_dataloader.dataset.pipeline
    assert plain_pipeline(coco) == [
        dict(type='LoadImageFromFile', backend_args=None),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', scale=(1333, 800), keep_ratio=True), dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs')]
    assert plain_pipeline(plain_pipeline(coco)) == plain_pipeline(coco)


def test_resolutions_of_configs():
    assert resolutions_of(Config.fromfile(CONFIG)) == [128, 160, 192, 224, 256, 288]
    assert resolutions_of(Config.fromfile(ROOT / 'configs/patconv/resnet50_patconv_in1k.py')) == [224]
    assert resolutions_of(Config.fromfile(ROOT / 'configs/mask_rcnn/partialnet_s_1x.py')) == []


def test_times_by_a_clock_that_goes_on_with_each_look(photographs):
    """The clock's looks are 1, 2, 3, ... s, so each step of each image takes one second."""
    cfg = Config.fromfile(CONFIG)
    samples = [dict(img_path=str(file), gt_label=0) for file in find_photographs(photographs, 9)]
    ticks = itertools.count()
    times = PipelineTimes(cfg, samples, [32, 64], rounds=2, clock=lambda: next(ticks))
    assert times.milliseconds('own') == [1000] * 3 and times.milliseconds('plain') == [1000] * 5
    assert times.images_per_second() == times.images_per_second(32) == pytest.approx(1 / 3)
    assert times.images_per_second(64, 'plain') == pytest.approx(1 / 5)
    assert times.speedup().median == times.speedup(32).median == pytest.approx(5 / 3)


def test_all_pipelines_get_the_same_random_numbers(photographs):
    drawn = []

    class Draw:
        def __call__(self, results):
            drawn.append(np.random.random_sample())
            return results

    samples = [dict(img_path=str(file)) for file in find_photographs(photographs, 9)]
    from mmengine.registry import TRANSFORMS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRANSFORMS.module_dict, 'Draw', Draw)
        time_pipelines(dict(a=[dict(type='Draw')], b=[dict(type='Draw')]), samples, rounds=2)
    warm_up, first, second = np.reshape(drawn, (3, 2, 3))
    assert all((each[0] == each[1]).all() for each in (warm_up, first, second)) and (first != second).all()


@pytest.mark.parametrize('rate, of_a_worker, workers', [(1000, 500, 2), (1001, 500, 3), (10, 500, 1)])
def test_workers(rate, of_a_worker, workers):
    assert workers_needed(rate, of_a_worker) == workers


def test_report_of_both_kinds(photographs, tmp_path):
    data = write_coco_data(tmp_path, dict(train=2))
    text = report(arguments(CONFIG, '--images', photographs, '--image-size', 50, 40, '--sizes', 32, '--rounds', 1,
                            '--images-per-second', 100000, '--gpus', 4), {CONFIG: 0.5})
    assert '| config | FastRandAugment | ' in text and '| plain | RandAugment | ' in text
    given, measured = [line.split(' | ') for line in text.splitlines()[-2:]]
    assert given[1] == '100000 (given)' and measured[1] == '0 (measured)'
    assert int(given[-1].strip('| ')) == 4 * int(given[-2]) and measured[-2] == '1'
    text = report(arguments(ROOT / 'configs/mask_rcnn/partialnet_s_1x.py', '--images', data / 'images', '--annotations',
                            data / 'annotations/instances_train.json', '--rounds', 1), {})
    assert '| config | FastLoadAnnotations | ' in text
    assert text.splitlines()[-1].startswith('| mask_rcnn/partialnet_s_1x | all | ')


@pytest.mark.parametrize('config, images, message', [
    ('mask_rcnn/partialnet_s_1x.py', 'photographs', 'needs --annotations'),
    ('upernet/upernet_partialnet_s_160k_ade20k.py', 'photographs', "got one with default_scope 'mmseg'"),
    ('pretrain/partialnet_s_in1k.py', 'empty', 'holds no files that end in .jpg')])
def test_errors(photographs, tmp_path, config, images, message):
    folder = photographs if images == 'photographs' else tmp_path
    with pytest.raises(ValueError, match=message):
        report(arguments(ROOT / 'configs' / config, '--images', folder), {})


def test_a_folder_that_does_not_exist(capsys):
    with pytest.raises(SystemExit):
        arguments(CONFIG, '--images', 'nowhere')
    assert "folder 'nowhere' does not exist" in capsys.readouterr().err
