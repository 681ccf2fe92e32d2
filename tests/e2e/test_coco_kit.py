# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The check of COCO's files."""
import hashlib
import json
import re

import pytest
from mmengine.config import Config

from partialnet_mm.datasets import write_shapes_dataset
from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import load_tool, run_main

CHECK = 'tools/dataset_tools/check_coco.py'


@pytest.fixture
def coco(tmp_path):
    """A drawn data set in COCO's folders, and what check_coco.py would have to expect of it."""
    counts = dict(train2017=4, val2017=2)
    objects = write_shapes_dataset(tmp_path / 'coco', counts, size=64)
    archive = tmp_path / 'coco' / 'val2017.zip'
    archive.write_bytes(b'PK' * 5000)
    return tmp_path / 'coco', dict(
        SPLITS={split: dict(images=counts[split], annotations=objects[split], categories=3) for split in counts},
        ARCHIVES={'val2017.zip': hashlib.md5(archive.read_bytes()).hexdigest(), 'train2017.zip': 'not there'})


def test_the_published_figures():
    tool = load_tool(CHECK)
    assert list(tool.SPLITS['train2017'].values()) == [118287, 860001, 80]
    assert list(tool.SPLITS['val2017'].values()) == [5000, 36781, 80]
    assert all(re.fullmatch('[0-9a-f]{32}', digest) for digest in tool.ARCHIVES.values())
    data = Config.fromfile(ROOT / 'configs/mask_rcnn/partialnet_s_1x.py')
    for loader, split in ((data.train_dataloader, 'train2017'), (data.test_dataloader, 'val2017')):
        assert loader.dataset.ann_file == f'annotations/instances_{split}.json'
        assert loader.dataset.data_prefix.img == f'{split}/'


def test_complete_data(coco, monkeypatch, capsys):
    root, expected = coco
    assert run_main(monkeypatch, CHECK, root, **expected) == 0
    said = capsys.readouterr().out
    assert 'train2017: 4 images, ' in said and '3 categories, 4 image files' in said
    assert 'val2017.zip: MD5 ' in said and f'train2017.zip: not in {root}, not checked' in said
    assert said.endswith('COCO 2017 is complete\n')


def remove_annotation(root):
    path = root / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    content['annotations'].pop()
    path.write_text(json.dumps(content))


def truncate(root):
    path = root / 'annotations' / 'instances_train2017.json'
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize('damage, message', [
    (lambda root: (root / 'train2017' / '00003.jpg').unlink(), r'train2017 has 3 image files, COCO 2017 has 4'),
    (lambda root: (root / 'val2017' / '00001.jpg').write_bytes(b'\xff\xd8'), r'00001\.jpg: 2 bytes that do not decode'),
    (remove_annotation, r'val2017 has \d+ annotations, COCO 2017 has \d+'),
    (truncate, r'instances_train2017\.json \(\d+ bytes\) is not in COCO format: JSONDecodeError'),
    (lambda root: (root / 'annotations' / 'instances_val2017.json').unlink(), r'val2017\.json does not exist'),
    (lambda root: (root / 'val2017.zip').write_bytes(b'PK'), r'val2017\.zip has MD5 \w+, the published one'),
], ids=['file', 'image', 'annotation', 'json', 'annotations', 'archive'])
def test_damaged_data(coco, damage, message, monkeypatch, capsys):
    root, expected = coco
    damage(root)
    assert run_main(monkeypatch, CHECK, root, '--images', 'all', **expected) == 1
    said = capsys.readouterr().out
    assert re.search('WRONG:.*' + message, said, re.DOTALL) and 'is complete' not in said


@pytest.mark.parametrize('arguments, message', [
    (['nowhere'], "'nowhere' is not a folder"), (['tests', '--images', 'some'], "--images must be a positive number"),
])
def test_wrong_usage_of_the_check(arguments, message, monkeypatch, capsys):
    assert run_main(monkeypatch, CHECK, *arguments) == 2
    assert message in capsys.readouterr().err
