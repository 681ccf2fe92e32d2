# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The metafiles name every config, and what they state is true."""
import importlib.util

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from partialnet_mm.zoo import CLASSIFIER_FOLDERS, UNPUBLISHED
from tests.helpers.libraries import ROOT

METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))


def test_index_lists_every_metafile():
    here = [path.relative_to(ROOT).as_posix() for path in METAFILES]
    assert yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import'] == here, 'model-index.yml, in this order'


def test_index_is_what_mim_and_mmpretrain_read():
    model_index = pytest.importorskip('modelindex.load_model_index')
    index = model_index.load(str(ROOT / 'model-index.yml'))
    # It looks for READMEs in the metafile's folder; OpenMMLab's metafiles name them from the root.
    assert [error for error in index.check(silent=True) if 'Path to README' not in error] == []
    assert [c.readme for c in index.collections if c.readme and not (ROOT / c.readme).is_file()] == []
    assert {model.in_collection for model in index.models} == {collection.name for collection in index.collections}
    names = [model.name for model in index.models]
    assert len(names) == len(set(names))
    # mim compares names in lower case
    assert [name for name in names if name != name.lower()] == []


@pytest.fixture
def no_random_weights(monkeypatch):
    """The networks are only counted, and drawing their weights takes most of the time."""
    for name in ('kaiming_uniform_', 'kaiming_normal_', 'xavier_uniform_', 'uniform_', 'normal_', 'trunc_normal_'):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize('folder', sorted(p.name for p in (ROOT / 'configs').iterdir()
                                          if p.name != '_base_' and list(p.glob('*.py'))))
def test_metafile_is_true(folder, no_random_weights):
    path = ROOT / 'configs' / folder / 'metafile.yml'
    assert path.is_file(), f'configs/{folder} needs a metafile.yml, and model-index.yml a line for it'
    content = yaml.safe_load(path.read_text())
    collections = {c['Name']: c['Metadata'] for c in content['Collections']}
    configs = sorted(p.relative_to(ROOT).as_posix() for p in path.parent.glob('*.py'))
    assert sorted(m['Config'] for m in content['Models']) == configs, f'{path} names each config of its folder once'
    for model in content['Models']:
        name, metadata, cfg = model['Name'], model['Metadata'], Config.fromfile(ROOT / model['Config'])
        assert metadata.get('Training Data', collections[model['In Collection']].get('Training Data')), name
        # without weights there are no results
        assert model.get('Weights', UNPUBLISHED + name) == UNPUBLISHED + name
        assert all(not result['Metrics'] for result in model.get('Results', []))
        if 'max_iters' in cfg.train_cfg:
            assert metadata['Iterations'] == cfg.train_cfg.max_iters, name
        elif cfg.train_dataloader.dataset.get('times') == 'auto':  # follows from the size of the data
            assert not {'Epochs', 'Batch Size'} & set(metadata), name
        else:  # how often the training uses each image
            times = cfg.train_dataloader.dataset.get('times', 1)
            assert metadata['Epochs'] == cfg.train_cfg.max_epochs * times, name
        if 'Batch Size' in metadata:
            assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size, name
        if 'Parameters' in metadata and importlib.util.find_spec(cfg.default_scope):
            init_default_scope(cfg.default_scope)
            count = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
            assert metadata['Parameters'] == count, f'{name}; a model that the two sets build differently has no count'
        if folder in CLASSIFIER_FOLDERS:  # registered with mmpretrain
            assert cfg.default_scope == 'mmpretrain', name
            assert 'partialnet' in name, f'{name}: mmpretrain would refuse its own models of this name'
            # with these its inferencers accept the model, and refuse it without weights
            assert model['Results'][0]['Task'] == 'Image Classification', name
            assert 'Weights' in model, name
