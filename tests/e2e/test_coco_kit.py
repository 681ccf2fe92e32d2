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
    (truncate, r'instances_train2017\.json, \w+\S*: .*may be truncated \(\d+ bytes\)'),
    (lambda root: (root / 'annotations' / 'instances_val2017.json').unlink(), r'val2017\.json: .* does not exist'),
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


# Nothing of the user's is written over

SHAPES, SEMANTIC = 'tools/dataset_tools/make_shapes.py', 'tools/dataset_tools/coco_to_semantic.py'


def contents(folder):
    return {path: (path.is_symlink(), path.read_bytes()) for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('existing', ['annotations/instances_val.json', 'train/00002.jpg'])
def test_drawn_images_never_replace_others_unasked(monkeypatch, capsys, tmp_path, existing):
    (tmp_path / existing).parent.mkdir()
    (tmp_path / existing).write_text('mine')
    command = SHAPES, tmp_path, '--train', 2, '--val', 1, '--size', 64
    assert run_main(monkeypatch, *command) == 2
    assert f"{existing}' is not written: it exists. --force overwrites it" in capsys.readouterr().err
    assert list(contents(tmp_path)) == [tmp_path / existing]
    assert run_main(monkeypatch, *command, '--force') == 0
    assert len(contents(tmp_path)) == 5 and (tmp_path / existing).read_bytes() != b'mine'


@pytest.fixture
def shapes(tmp_path):
    """A drawn data set, and a function that runs coco_to_semantic.py on it."""
    write_shapes_dataset(tmp_path / 'coco', dict(train=2), size=64)
    annotations = tmp_path / 'coco' / 'annotations' / 'instances_train.json'

    def run(monkeypatch, *options, images=tmp_path / 'coco' / 'train', root=tmp_path / 'out', name=None):
        if name is not None:
            content = json.loads(annotations.read_text())
            content['images'][0]['file_name'] = name
            annotations.write_text(json.dumps(content))
        return run_main(monkeypatch, SEMANTIC, annotations, images, root, 'train', *options)

    return tmp_path, run


@pytest.mark.parametrize('options', [[], ['--symlink'], ['--force'], ['--symlink', '--force']])
@pytest.mark.parametrize('name', ['{images}/00001.jpg', '../train/00001.jpg'])
def test_names_that_leave_the_folder_are_refused(monkeypatch, capsys, shapes, options, name):
    folder, run = shapes
    name = name.format(images=folder / 'coco' / 'train')
    before = contents(folder / 'coco' / 'train')
    assert run(monkeypatch, *options, name=name) == 2
    assert 'names must be relative' in capsys.readouterr().err
    assert contents(folder / 'coco' / 'train') == before and not (folder / 'out').exists()


@pytest.mark.parametrize('options', [[], ['--symlink'], ['--force'], ['--symlink', '--force']])
def test_sources_in_the_target_folder_stay(monkeypatch, capsys, shapes, options):
    folder, run = shapes
    (folder / 'out' / 'img_dir').mkdir(parents=True)
    (folder / 'coco' / 'train').rename(folder / 'out' / 'img_dir' / 'train')
    before = contents(folder)
    assert run(monkeypatch, *options, images=folder / 'out' / 'img_dir' / 'train') == 2
    assert 'Nothing was written' in capsys.readouterr().err
    assert contents(folder) == before


def test_a_second_run_needs_force_and_replaces_links_not_what_they_name(monkeypatch, capsys, shapes):
    folder, run = shapes
    sources = contents(folder / 'coco')
    assert run(monkeypatch, '--symlink') == 0
    assert all((folder / 'out' / 'img_dir' / 'train' / f'0000{i}.jpg').is_symlink() for i in (1, 2))
    assert run(monkeypatch, '--symlink') == 2 and 'Nothing was written' in capsys.readouterr().err
    assert run(monkeypatch, '--force') == 0
    copied = contents(folder / 'out' / 'img_dir')
    assert [link for link, _ in copied.values()] == [False, False]
    assert contents(folder / 'coco') == sources
