# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""mmengine's own loading of checkpoints, after register_loader()."""
import functools
import http.server
import threading

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner.checkpoint import _load_checkpoint, get_mmcls_models, get_torchvision_models
from torch import nn

from partialnet_mm.checkpoint import loader, register_loader, write_checkpoint
from partialnet_mm.checkpoint.loader import hand_over
from tests.helpers.hostile_checkpoints import KINDS


@pytest.fixture(autouse=True)
def schemes(monkeypatch):
    """mmengine's own loaders come back after the test."""
    before = dict(CheckpointLoader._schemes)
    monkeypatch.setattr(CheckpointLoader, '_schemes', before.copy())
    return before


@pytest.fixture
def weights(tmp_path):
    write_checkpoint(dict(state_dict={'backbone.weight': torch.ones(2, 3), 'backbone.bias': torch.ones(2)}, meta={}),
                     tmp_path / 'c.safetensors')
    return str(tmp_path / 'c.safetensors')


class Module(BaseModule):
    """Any module that is not of this project."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.backbone = nn.Linear(3, 2)


def test_no_scheme_of_mmengine_is_left_out(schemes):
    register_loader()
    register_loader()
    ours = {prefix: found for prefix, found in CheckpointLoader._schemes.items() if prefix in schemes}
    assert {found.__name__ for prefix, found in ours.items() if prefix in loader.SCHEMES} == {'load_from_data'}
    # What this package itself has registered reads nothing: it explains that there are no weights.
    assert {found.__module__ for prefix, found in ours.items() if prefix not in loader.SCHEMES} <= {'partialnet_mm.zoo'}


def test_safetensors_load_into_any_module(weights):
    register_loader()
    module = Module()
    load_checkpoint(module, weights, strict=True)
    assert (module.backbone.weight == 1).all()
    module = Module(dict(type='Pretrained', checkpoint=weights))
    module.init_weights()
    assert (module.backbone.weight == 1).all()


@pytest.mark.parametrize('kind', ['os.system', 'os.system, legacy format', 'TorchScript'])
def test_hostile_files_are_refused(kind, tmp_path):
    register_loader()
    path, canary = tmp_path / 'c.pth', tmp_path / 'canary'
    KINDS[kind](path, canary)
    with pytest.raises(ValueError, match='cannot be read'):
        Module(dict(type='Pretrained', checkpoint=str(path))).init_weights()
    assert not canary.exists()


def test_trust(tmp_path):
    KINDS['os.system'](tmp_path / 'c.pth', tmp_path / 'canary')
    register_loader(trust=True)
    assert _load_checkpoint(str(tmp_path / 'c.pth'))['meta']['epoch'] == 1
    assert (tmp_path / 'canary').exists()
    register_loader()
    with pytest.raises(ValueError, match='cannot be read'):
        _load_checkpoint(str(tmp_path / 'c.pth'))


def test_what_is_read_already_is_not_opened_again(weights):
    register_loader()
    content = dict(state_dict=dict(weight=torch.ones(1)))
    for path in (weights, 'gone.pth'):
        hand_over(path, content)
        assert _load_checkpoint(path) is content
    assert set(_load_checkpoint(weights)['state_dict']) == {'backbone.weight', 'backbone.bias'}
    with pytest.raises(FileNotFoundError, match="'gone.pth' does not exist"):
        _load_checkpoint('gone.pth')


def test_a_file_without_tensors(tmp_path):
    torch.save(dict(state_dict=dict(weight=[1.])), tmp_path / 'c.pth')
    register_loader()
    with pytest.raises(ValueError, match="c.pth' holds no tensors"):
        Module(dict(type='Pretrained', checkpoint=str(tmp_path / 'c.pth'))).init_weights()


def test_home(weights, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    register_loader()
    assert 'state_dict' in _load_checkpoint('~/c.safetensors')


@pytest.fixture
def address(tmp_path):
    """A web server on this machine that shows the test's folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_addresses(address, weights, tmp_path):
    register_loader()
    assert set(_load_checkpoint(f'{address}/c.safetensors')['state_dict']) == {'backbone.weight', 'backbone.bias'}
    KINDS['os.system'](tmp_path / 'c.pth', tmp_path / 'canary')
    with pytest.raises(ValueError, match=f"'{address}/c.pth' could not be fetched: .*cannot be read"):
        _load_checkpoint(f'{address}/c.pth')
    assert not (tmp_path / 'canary').exists()
    with pytest.raises(ValueError, match='no.pth.* could not be fetched'):
        _load_checkpoint(f'{address}/no.pth')


def test_names_of_model_zoos(address, weights, monkeypatch):
    register_loader()
    name = 'resnet50'
    assert loader._address_of(f'torchvision://{name}') == get_torchvision_models()[name]
    assert loader._address_of('a/b.pth') == 'a/b.pth'
    known = dict.fromkeys(get_mmcls_models(), f'{address}/c.safetensors')
    monkeypatch.setattr(loader, 'get_mmcls_models', lambda: known)
    # mmengine takes the backbone out of these, without its prefix.
    assert set(_load_checkpoint(f'mmcls://{next(iter(known))}')['state_dict']) == {'weight', 'bias'}
    with pytest.raises(ValueError, match="'openmmlab://no_such_model' is not known to mmengine, which lists"):
        _load_checkpoint('openmmlab://no_such_model')
