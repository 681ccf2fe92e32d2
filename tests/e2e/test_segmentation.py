# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Segmentation: COCO masks to mmseg's folders, training and test on a few drawn images."""
import io
import json
import re
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout

import cv2
import numpy as np
import pytest

from partialnet_mm.datasets import write_shapes_dataset
from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import run_main

CONFIG = ROOT / 'configs/semantic_fpn/semantic_fpn_partialnet_t0_shapes.py'


def coco_to_semantic(*arguments):
    """Runs the tool in this process; returns its exit status, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, 'argv', ['coco_to_semantic.py', *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / 'tools/dataset_tools/coco_to_semantic.py'), run_name='__main__')
        except SystemExit as stop:
            return stop.code, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def annotation(number, category, box, **changes):
    """A rectangle; its box is x, y, width, height."""
    x, y, width, height = box
    return dict(dict(id=number, image_id=1, category_id=category, bbox=box, area=width * height, iscrowd=0,
                     segmentation=[[x, y, x + width, y, x + width, y + height, x, y + height]]), **changes)


@pytest.fixture
def coco(tmp_path):
    """One image with a large box, a smaller one in it, a crowd beside them, and categories numbered 7 and 3."""
    content = dict(
        images=[dict(id=1, file_name='sub/a.png', height=20, width=30)],
        categories=[dict(id=7, name='nut'), dict(id=3, name='date')],
        annotations=[annotation(1, 7, [4, 5, 4, 3]), annotation(2, 3, [2, 2, 10, 12]),
                     annotation(3, 7, [20, 0, 10, 20], iscrowd=1, segmentation=dict(size=[20, 30], counts=[400, 200]))])
    (tmp_path / 'images' / 'sub').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'images' / 'sub' / 'a.png'), np.full((20, 30, 3), 99, np.uint8))

    def write(**changes):
        (tmp_path / 'coco.json').write_text(json.dumps({**content, **changes}))
        return [tmp_path / 'coco.json', tmp_path / 'images', tmp_path / 'out', 'train']

    return content, write, tmp_path / 'out'


@pytest.mark.parametrize('symlink', [False, True])
def test_masks_become_a_map(coco, symlink):
    pytest.importorskip('pycocotools')
    _, write, out = coco
    status, printed, _ = coco_to_semantic(*write(), *(['--symlink'] if symlink else []))
    assert status == 0
    expected = np.zeros((20, 30), np.uint8)
    expected[2:14, 2:12] = 1  # date: the lower id
    expected[5:8, 4:8] = 2  # the smaller nut lies over it, though the file has it first
    expected[:, 20:] = 255
    found = cv2.imread(str(out / 'ann_dir/train/sub/a.png'), cv2.IMREAD_UNCHANGED)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)
    image = out / 'img_dir/train/sub/a.png'
    assert image.is_symlink() == symlink and cv2.imread(str(image))[0, 0].tolist() == [99, 99, 99]
    assert "img_suffix='.png', metainfo=dict(classes=('background', 'date', 'nut'))" in printed
    assert re.search(r'2  nut +2\.0% of all pixels', printed)


def test_what_cannot_become_maps_is_said_and_nothing_is_written(coco):
    content, write, out = coco
    status, _, said = coco_to_semantic(*write(annotations=[annotation(1, 7, [4, 5, 4, 3], segmentation=None)]))
    assert status == 1 and 'ERROR mask missing (1)' in said
    status, _, said = coco_to_semantic(*write(categories=[dict(id=i, name=f'c{i}') for i in range(1, 256)]))
    assert status == 2 and 'has 255 categories; a label image in uint8 has room for 254' in said
    cv2.imwrite(str(out.parent / 'images' / 'b.jpg'), np.zeros((20, 30, 3), np.uint8))
    status, _, said = coco_to_semantic(
        *write(images=[*content['images'], dict(id=2, file_name='b.jpg', height=20, width=30)]))
    assert status == 2 and "images of the kinds ['.jpg', '.png']; mmsegmentation takes one" in said
    assert not out.exists()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Semantic FPN after 30 iterations on 16 drawn images, and its log."""
    pytest.importorskip('mmseg')
    root = tmp_path_factory.mktemp('segmentation')
    write_shapes_dataset(root / 'coco', dict(train=16, val=4), size=64)
    for split in ('train', 'val'):
        status, *_ = coco_to_semantic(root / f'coco/annotations/instances_{split}.json', root / 'coco' / split,
                                      root / 'data', split)
        assert status == 0
    options = ['model.data_preprocessor.size=(64,64)']
    for split in ('train', 'val', 'test'):
        options += [f'{split}_dataloader.{option}' for option in (
            f'dataset.data_root={root}/data', 'num_workers=0', 'persistent_workers=False')]
    with pytest.MonkeyPatch.context() as patch:
        assert run_main(
            patch, 'tools/train.py', CONFIG, '--work-dir', root / 'work', '--cfg-options', *options,
            'train_cfg.max_iters=30', 'train_cfg.val_interval=15', 'default_hooks.checkpoint.interval=15',
            'default_hooks.logger.interval=5', 'log_processor.window_size=5', 'param_scheduler.0.end=2',
            'param_scheduler.1.begin=2', 'param_scheduler.1.end=30') == 0
    log, = root.glob('work/*/*.log')
    return root, options, re.sub(' +', ' ', log.read_text())


def test_training_learns(trained):
    root, _, log = trained
    losses = [float(value) for value in re.findall(r'Iter\(train\) \[.*? loss: ([\d.]+)', log)]
    assert len(losses) >= 6 and losses[-1] < 0.5 * losses[0]
    assert len(re.findall(r'Iter\(val\) \[1/1\].* mIoU: [\d.]+', log)) == 2
    assert (root / 'work' / 'iter_30.pth').is_file()


def test_test_measures_and_draws(trained, monkeypatch, capsys):
    root, options, log = trained
    # A process has one visualizer of a name, which writes to the folder of the training.
    assert run_main(monkeypatch, 'tools/test.py', CONFIG, root / 'work/iter_30.pth', '--work-dir', root / 'test',
                    '--show-dir', root / 'pictures', '--cfg-options', *options,
                    'visualizer.name=segmentation_test') == 0
    measured = float(re.search(r'^mIoU +([\d.]+)$', capsys.readouterr().out, re.M).group(1))
    assert measured == pytest.approx(float(re.findall(r'mIoU: ([\d.]+)', log)[-1]), abs=0.01)
    pictures = sorted((root / 'pictures').rglob('*.png'))
    assert len(pictures) == 4
    # mmseg draws the annotation beside the prediction.
    assert cv2.imread(str(pictures[0])).shape == (64, 128, 3)


def test_missing_data_is_an_error_before_training(tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmseg')
    assert run_main(monkeypatch, 'tools/train.py', CONFIG, '--work-dir', tmp_path, '--cfg-options',
                    f'train_dataloader.dataset.data_root={tmp_path}/none') == 2
    assert f'{tmp_path}/none' in capsys.readouterr().err
    assert not list(tmp_path.glob('*.pth'))
