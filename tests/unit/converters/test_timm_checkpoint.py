# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints of timm's trainings and of mmpretrain's, converted into each other."""
import argparse

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from partialnet_mm.checkpoint import read_checkpoint, write_checkpoint
from partialnet_mm.converters.timm_checkpoint import from_timm, to_timm

timm = pytest.importorskip('timm')
partialnet_timm = pytest.importorskip('partialnet_mm.timm')


@pytest.fixture(scope='module')
def models():
    """Two of T0 for 10 classes: weights of the last step, and averages."""
    return [timm.create_model('partialnet_t0', num_classes=10).eval() for _ in range(2)]


@pytest.fixture(scope='module')
def training(models, tmp_path_factory):
    """What timm's train.py writes with --model-ema and --torchcompile."""
    last, averaged = models
    path = tmp_path_factory.mktemp('timm') / 'last.pth.tar'
    optimizer = torch.optim.AdamW(last.parameters())
    torch.save(dict(
        epoch=7, arch='partialnet_t0', version=2, metric=71.5, optimizer=optimizer.state_dict(),
        args=argparse.Namespace(model='partialnet_t0', lr=0.1, opt_betas=None),
        state_dict={f'_orig_mod.{name}': value for name, value in last.state_dict().items()},
        state_dict_ema={f'module.{name}': value for name, value in averaged.state_dict().items()}), path)
    return path


def same(state, model):
    expected = model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_training_by_timm_becomes_ours(models, training):
    content = read_checkpoint(training)
    assert content['args'] == dict(model='partialnet_t0', lr=0.1, opt_betas=None)
    converted = from_timm(content)
    assert same(converted['state_dict'], models[1]) and same(from_timm(content, no_ema=True)['state_dict'], models[0])
    assert converted['meta'] == dict(backbone=dict(type='PartialNet', arch='t0'), epoch=7)
    assert not {value.data_ptr() for value in converted['state_dict'].values()} & {
        value.data_ptr() for value in content['state_dict_ema'].values()}


@pytest.mark.parametrize('ending', ['safetensors', 'pth'])
def test_a_training_by_mmpretrain_is_loaded_by_timm(models, tmp_path, ending):
    log = HistoryBuffer([1.5], [1])
    content = dict(
        state_dict={f'module.{name}': value for name, value in models[0].state_dict().items()}, optimizer={},
        meta=dict(epoch=3, dataset_meta=dict(classes=['a']), seed=1), message_hub=dict(loss=log, time=np.float64(1)))
    path = tmp_path / f'weights.{ending}'
    write_checkpoint(to_timm(content), path)
    assert same(timm.create_model('partialnet_t0', num_classes=10, checkpoint_path=path).state_dict(), models[0])
    back = from_timm(read_checkpoint(path))
    assert same(back['state_dict'], models[0]) and back['meta'] == dict(epoch=3, dataset_meta=dict(classes=['a']))


def test_what_is_no_classifier_is_refused(models):
    state = models[0].state_dict()
    backbone = {name: value for name, value in state.items() if name.startswith('backbone.')}
    for convert, content, message in (
            (from_timm, timm.create_model('fasternet_t0').state_dict(), 'it has no backbone.downsample_layers.0.conv'),
            (from_timm, dict(state, **{'backbone.stages.0.0.mlp.conv1.weight': torch.tensor([torch.nan])}),
             'backbone.stages.0.0.mlp.conv1.weight is not finite'),
            (lambda content: from_timm(content, no_ema=True), state, r'no_ema \(--no-ema\): there is none of'),
            (to_timm, backbone, 'it has no head.layers.0.fc.weight'),
            (to_timm, dict(backbone, **{'backbone.norm0.weight': torch.ones(32), 'neck.conv.weight': torch.ones(1)}),
             '2 tensors are of no classifier of timm.*: backbone.norm0.weight, neck.conv.weight')):
        with pytest.raises(ValueError, match=message):
            convert(content)
