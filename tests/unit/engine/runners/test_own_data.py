# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The settings of an own-data config reach every position that mmdet reads them from."""
import argparse
import json
import re
import shutil

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from partialnet_mm.engine import CocoFormatRunner, apply_own_data_settings, spread_data_settings
from partialnet_mm.engine.runners.command_line import load_config
from partialnet_mm.engine.runners.config_file import ConfigError
from tests.helpers.libraries import ROOT

NAMES = ('disc', 'box', 'triangle')


def write_annotations(root, split, names=NAMES):
    path = root / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(images=[], annotations=[], categories=[
        dict(id=i + 1, name=name) for i, name in enumerate(names)])))


@pytest.fixture
def data_root(tmp_path):
    root = tmp_path / 'own'
    for split in ('train', 'val'):
        write_annotations(root, split)
    (root / 'images').mkdir()
    return root


@pytest.fixture
def cfg(data_root):
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn/partialnet_t0_custom.py')
    cfg.data_root = str(data_root)
    return cfg


def heads(cfg):
    return cfg.model.roi_head.bbox_head.num_classes, cfg.model.roi_head.mask_head.num_classes


def datasets(cfg):
    return [cfg.train_dataloader.dataset.dataset, cfg.val_dataloader.dataset, cfg.test_dataloader.dataset]


def test_three_settings_reach_every_position(cfg, data_root):
    cfg.merge_from_dict(dict(classes=['box', 'disc'], checkpoint='some.pth'))
    applied = apply_own_data_settings(cfg)
    for dataset in datasets(applied):
        assert dataset.data_root == str(data_root)
        # mmdet numbers classes in the order of the file, whatever the order here
        assert dataset.metainfo.classes == ('disc', 'box')
    assert applied.classes == ('disc', 'box') and heads(applied) == (2, 2)
    for evaluator in (applied.val_evaluator, applied.test_evaluator):
        assert evaluator.ann_file == str(data_root / 'annotations/instances_val.json')
    assert applied.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='some.pth', prefix='backbone.')
    # the given config is not changed
    assert heads(cfg) == (80, 80) and cfg.train_dataloader.dataset.dataset.data_root == 'data/custom/'


def test_defaults_are_all_categories_and_random_weights(cfg):
    applied = apply_own_data_settings(cfg)
    assert applied.val_dataloader.dataset.metainfo.classes == NAMES
    assert heads(applied) == (3, 3)
    assert 'init_cfg' not in applied.model.backbone


def test_one_class_as_text(cfg):
    cfg.classes = 'triangle'
    applied = apply_own_data_settings(cfg)
    assert applied.train_dataloader.dataset.dataset.metainfo.classes == ('triangle', )
    assert heads(applied) == (1, 1)


@pytest.mark.parametrize('marks, applies', [
    (dict(own_data=True), True), (dict(runner_type='CocoFormatRunner'), True), (dict(own_data=False), False),
    ({}, False),
], ids=str)
def test_what_marks_an_own_data_config(cfg, marks, applies):
    for name in ('own_data', 'runner_type'):
        cfg.pop(name)
    cfg.update(marks)
    applied = apply_own_data_settings(cfg)
    assert heads(applied) == ((3, 3) if applies else (80, 80))
    assert (applied is cfg) != applies


def test_is_idempotent_and_the_saved_config_needs_no_data(cfg, data_root, tmp_path):
    applied = apply_own_data_settings(cfg)
    applied.dump(tmp_path / 'saved.py')
    shutil.rmtree(data_root)
    saved = Config.fromfile(tmp_path / 'saved.py')
    assert apply_own_data_settings(applied).to_dict() == apply_own_data_settings(saved).to_dict() == applied.to_dict()
    # as version 0.1 saved it
    saved.pop('own_data')
    saved.classes = None
    assert heads(apply_own_data_settings(saved)) == (3, 3)


def test_a_saved_config_takes_another_data_root(cfg, data_root):
    applied = apply_own_data_settings(cfg)
    applied.data_root = str(data_root.parent / 'moved')
    with pytest.raises(FileNotFoundError, match='moved. is not a folder'):
        apply_own_data_settings(applied)
    data_root.rename(applied.data_root)
    moved = apply_own_data_settings(applied)
    assert {dataset.data_root for dataset in datasets(moved)} == {applied.data_root}
    assert moved.test_evaluator.ann_file.startswith(applied.data_root)


def test_only_the_data_of_the_splits_must_exist(cfg, data_root):
    (data_root / 'annotations/instances_train.json').unlink()
    with pytest.raises(FileNotFoundError, match='instances_train.json'):
        apply_own_data_settings(cfg, ('train', 'val'))
    applied = apply_own_data_settings(cfg, ('test', ))
    assert applied.test_dataloader.dataset.metainfo.classes == NAMES and heads(applied) == (3, 3)


def test_without_splits_no_data_is_needed(cfg, data_root):
    shutil.rmtree(data_root)
    applied = apply_own_data_settings(cfg, ())
    assert {dataset.data_root for dataset in datasets(applied)} == {str(data_root)}
    assert heads(applied) == (80, 80)
    cfg.classes = ['a', 'b']
    assert heads(apply_own_data_settings(cfg, ())) == (2, 2)


def test_a_test_config_with_several_metrics(cfg, data_root):
    """As tools/test.py --out changes it, and CocoFormatRunner gets it."""
    cfg = apply_own_data_settings(cfg, ('test', ))
    cfg.train_dataloader = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_evaluator = [cfg.test_evaluator, dict(type='DumpDetResults', out_file_path='a.pkl')]
    applied = apply_own_data_settings(cfg)
    assert applied.to_dict() == cfg.to_dict()


def test_wrappers_and_other_metainfo(cfg, data_root):
    write_annotations(data_root, 'more')
    one = cfg.train_dataloader.dataset.dataset
    one.metainfo = dict(palette=[(1, 2, 3)])
    cfg.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[one, dict(one, ann_file='annotations/instances_more.json')])
    applied = apply_own_data_settings(cfg)
    for dataset in applied.train_dataloader.dataset.datasets:
        assert dataset.data_root == str(data_root)
        assert dataset.metainfo == dict(palette=[(1, 2, 3)], classes=NAMES)


def test_the_pages_config_of_several_files(data_root, tmp_path):
    """Passes and image scale follow from the images of all files."""
    page = (ROOT / 'docs/own_data.md').read_text()
    code = re.search(r'```python\n# several_files.py\n(.*?)```', page, re.DOTALL).group(1)
    (tmp_path / 'several.py').write_text(code.replace("'configs/", f"'{ROOT}/configs/"))
    for count, side in (('north', 400), ('south', 100)):
        write_annotations(data_root, 'train')
        content = json.loads((data_root / 'annotations/instances_train.json').read_text())
        content['images'] = [dict(id=i, file_name=f'{i}.jpg', width=side, height=side) for i in range(side)]
        (data_root / f'{count}.json').write_text(json.dumps(content))
        (data_root / count).mkdir()
    cfg = Config.fromfile(tmp_path / 'several.py')
    cfg.data_root = str(data_root)
    applied = apply_own_data_settings(cfg)
    assert [leaf.metainfo.classes for leaf in applied.train_dataloader.dataset.dataset.datasets] == [NAMES, NAMES]
    assert applied.own_data_choices.data == dict(images=500, width=400, height=400, small_object=None)


@pytest.mark.parametrize('ann_file, message', [
    (['a.json', 'b.json'],
     r"ann_file is \['a.json', 'b.json'\], but it takes one file: several go into a ConcatDataset"),
    (None, 'ann_file of a CocoDataset must be a file below data_root, got None')])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_one_annotation_file_per_data_set(cfg, split, ann_file, message):
    dataset = dict(zip(('train', 'val'), datasets(cfg)))[split]
    dataset.ann_file = ann_file
    for given in (None, ['disc']):
        cfg.classes = given
        with pytest.raises(ValueError, match=message):
            apply_own_data_settings(cfg, (split, ))


def test_a_setting_of_another_shape_is_one_sentence(cfg, tmp_path):
    cfg.val_dataloader.dataset.data_prefix = 'images/'
    cfg.dump(tmp_path / 'own.py')
    args = argparse.Namespace(config=str(tmp_path / 'own.py'), cfg_options=None)
    with pytest.raises(ConfigError, match=r"own.py': AttributeError: 'str' object has no attribute 'get'"):
        load_config(argparse.ArgumentParser(), args, ('val', ))
    args.cfg_options = {'val_dataloader.dataset.ann_file': ['a.json', 'b.json']}
    with pytest.raises(ConfigError, match='takes one file: .* it is of val_dataloader. Without one: '):
        load_config(argparse.ArgumentParser(), args, ('val', ))


def test_the_runner_applies_them(cfg, monkeypatch):
    """Scripts of other libraries build the runner by runner_type."""
    monkeypatch.setattr(Runner, 'from_cfg', classmethod(lambda cls, cfg: (cls, cfg)))
    cls, given = CocoFormatRunner.from_cfg(cfg)
    assert cls is CocoFormatRunner and given.to_dict() == spread_data_settings(cfg).to_dict()


@pytest.mark.parametrize('changes, error, message', [
    (dict(classes=['disc', 'star']), ValueError,
     r"classes \['star'\] are not among .*instances_train.json.*'triangle'"),
    (dict(classes=[]), ValueError, 'classes must be names'),
    (dict(classes=[1, 2]), ValueError, 'classes must be names'),
    (dict(classes=['disc', '']), ValueError, 'classes must be names'),
    (dict(classes=3), ValueError, 'classes must be names'),
    (dict(data_root=None), ValueError, 'data_root must be the folder of your data, got None'),
    (dict(data_root='nowhere/'), FileNotFoundError,
     r"data_root 'nowhere/' is not a folder.*--cfg-options data_root="),
    ({'val_dataloader.dataset.data_prefix.img': 'pictures/'}, FileNotFoundError,
     r"image folder '.*pictures/' does not exist"),
    ({'val_dataloader.dataset.ann_file': 'a.json'}, FileNotFoundError, 'annotation file .*a.json.* does not exist'),
], ids=str)
def test_wrong_settings(cfg, changes, error, message):
    cfg.merge_from_dict(changes)
    with pytest.raises(error, match=message):
        apply_own_data_settings(cfg)


@pytest.mark.parametrize('content', ['{"categories": [', json.dumps(dict(images=[])), '[]'])
def test_damaged_annotations(cfg, data_root, content):
    (data_root / 'annotations/instances_train.json').write_text(content)
    with pytest.raises(ValueError, match='instances_train.json.* is not in COCO format'):
        apply_own_data_settings(cfg)


@pytest.mark.parametrize('splits', [('train', 'val'), ('test', )])
def test_files_with_different_orders_of_classes(cfg, data_root, splits):
    """mmdet would number them differently, and the metric would compare wrong classes."""
    write_annotations(data_root, 'val', NAMES[::-1])
    with pytest.raises(ValueError, match='instances_train.json.*instances_val.json.* in different orders'):
        apply_own_data_settings(cfg, splits)
