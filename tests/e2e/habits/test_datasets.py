# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Data that is repeated, balanced, or of a format of the user's own."""
import collections
import csv
import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from partialnet_mm.datasets import SHAPE_CLASSES, write_shapes_dataset
from partialnet_mm.preflight import check_config, errors_in
from tests.helpers.tool_scripts import run_main


def annotations(root):
    return json.loads((root / 'annotations' / 'instances_train.json').read_text())


def times_seen(runner):
    """How often an epoch of the training loader shows each image, by the number of its file."""
    return collections.Counter(int(Path(sample.img_path).stem) for batch in runner.train_dataloader
                               for sample in batch['data_samples'])


def test_class_balanced_repeats_images_of_rare_classes(build_runner, shapes):
    classes = collections.defaultdict(set)
    for annotation in annotations(shapes)['annotations']:
        classes[annotation['image_id']].add(annotation['category_id'])
    part = {c: sum(c in shown for shown in classes.values()) / len(classes) for c in (1, 2, 3)}
    expected = {image: math.ceil(max(max(1, math.sqrt(0.5 / part[c])) for c in shown))
                for image, shown in classes.items()}
    assert set(expected.values()) == {1, 2}  # else the test would see nothing

    assert times_seen(build_runner()) == dict.fromkeys(expected, 1)
    runner = build_runner('class_balanced.py')
    assert times_seen(runner) == expected
    runner.train()
    assert runner.iter == math.ceil(sum(expected.values()) / 4)


def test_repeat_dataset_repeats(build_runner, shapes):
    runner = build_runner('repeated.py')
    assert times_seen(runner) == {image['id']: 10 for image in annotations(shapes)['images']}


@pytest.mark.parametrize('block', ['class_balanced.py', 'repeated.py'])
def test_the_data_is_checked_inside_wrappers(write_config, tmp_path, block):
    root = tmp_path / 'shapes'
    write_shapes_dataset(root, dict(train=3, val=1), size=64)
    cfg = Config.fromfile(write_config(block, data=root))
    assert errors_in(check_config(cfg, splits=['train'])) == []
    (root / 'train' / '00002.jpg').unlink()
    errors = errors_in(check_config(cfg, splits=['train']))
    assert len(errors) == 1 and '00002.jpg' in str(errors[0])


@pytest.fixture
def outline_table(shapes, tmp_path):
    """The drawn objects' boxes as a table of outlines; the images of the first half only."""
    data = annotations(shapes)
    rows = []
    for a in data['annotations']:
        x, y, w, h = a['bbox']
        rows.append([f"{a['image_id']:05d}.jpg", SHAPE_CLASSES[a['category_id'] - 1], x, y, x + w, y, x + w, y + h, x,
                     y + h])
    rows = [row for row in rows if int(row[0][:5]) <= 4]
    with open(tmp_path / 'train.csv', 'w', newline='') as file:
        csv.writer(file).writerows(rows)
    return rows


def test_a_data_set_class_of_the_users_own(blocks, write_config, outline_table, tmp_path, monkeypatch, capfd):
    """Through tools/train.py, with learning rates by layer and by batch, and mixed precision where there is a GPU."""
    (tmp_path / 'my_dataset.py').write_text(blocks['my_dataset.py'])
    path = write_config('custom_dataset.py', 'layer_decay.py', 'auto_scale_lr.py', 'amp.py',
                        more="log_level = 'INFO'")
    monkeypatch.syspath_prepend(tmp_path)
    assert run_main(monkeypatch, 'tools/train.py', path, '--work-dir', tmp_path / 'work', '--auto-scale-lr',
                    '--cfg-options', f"train_dataloader.dataset.ann_file={tmp_path / 'train.csv'}") == 0
    saved = torch.load(tmp_path / 'work' / 'epoch_1.pth', map_location='cpu', weights_only=False)
    assert saved['meta']['iter'] == 1  # four images in a batch of four
    assert saved['meta']['dataset_meta']['classes'] == SHAPE_CLASSES
    # 4 of 16 images, 7 layers
    found = sorted({group['lr'] for group in saved['optimizer']['param_groups']}, reverse=True)
    assert found == pytest.approx([1e-3 * 4 / 16 * 0.9**i for i in range(7)])
    log = ''.join(capfd.readouterr())
    assert 'coco/segm_mAP' in log
    assert ('training in float32, not in the mixed precision' in log) != torch.cuda.is_available()


def test_objects_of_the_users_own_format(blocks, build_runner, outline_table, tmp_path, monkeypatch):
    (tmp_path / 'my_dataset.py').write_text(blocks['my_dataset.py'])
    monkeypatch.syspath_prepend(tmp_path)
    runner = build_runner('custom_dataset.py', train_dataloader__dataset__ann_file=str(tmp_path / 'train.csv'),
                          train_dataloader__dataset__pipeline=[
                              dict(type='LoadImageFromFile'),
                              dict(type='LoadAnnotations', with_bbox=True, with_mask=True), dict(type='PackDetInputs')])
    found = []
    for batch in runner.train_dataloader:
        for sample in batch['data_samples']:
            instances = sample.gt_instances
            areas = instances.masks.areas
            for box, label, area in zip(instances.bboxes.tensor.tolist(), instances.labels.tolist(), areas):
                found.append((Path(sample.img_path).name, SHAPE_CLASSES[label], *box))
                assert area == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=1e-3)
    assert sorted(found) == sorted((name, label, corners[0], corners[1], corners[2], corners[5])
                                   for name, label, *corners in outline_table)
