# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""tools/deployment/export_onnx.py: ONNX files of any library's models, right at sizes that were not traced."""
import importlib.util
import json

import numpy as np
import pytest
import torch
from torch import nn

from partialnet_mm.deploy import onnx_export
from partialnet_mm.deploy.onnx_export import differences, to_onnx
from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import CLASSES, write_checkpoint, write_config
from tests.helpers.tool_scripts import run_main

onnxruntime = pytest.importorskip('onnxruntime')
TOOL = 'tools/deployment/export_onnx.py'
ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='GELU'))
SHAPES = ((1, 3, 64, 96), (3, 3, 225, 193), (2, 3, 33, 800))


@pytest.fixture
def export(monkeypatch, tmp_path, randomize_norms):
    """Exports a tiny model of a kind; returns the model as its checkpoint has it, and the file's session."""

    def run(kind, *options):
        config = write_config(kind, tmp_path / f'{kind}.py', ARCH)
        model = write_checkpoint(kind, config, tmp_path / f'{kind}.pth', randomize_norms)
        assert run_main(monkeypatch, TOOL, config, tmp_path / f'{kind}.pth', '--output', tmp_path / 'out.onnx',
                        *options) == 0
        return model, onnxruntime.InferenceSession(str(tmp_path / 'out.onnx'), providers=['CPUExecutionProvider'])

    return run


@torch.no_grad()
def assert_equal(session, network, shape):
    images = torch.randn(shape)
    wanted = network(images)
    wanted = [wanted] if isinstance(wanted, torch.Tensor) else wanted
    outs = session.run(None, {'images': images.numpy()})
    assert len(outs) == len(wanted)
    for out, want in zip(outs, wanted):
        assert out.shape == want.shape
        assert np.abs(out - want.numpy()).max() < 1e-4 * want.abs().max()


def metadata_of(session):
    return session.get_modelmeta().custom_metadata_map


def test_classifier(export, capsys):
    model, session = export('classifier')
    said = capsys.readouterr().out
    assert said.count('largest difference') == 3 and 'merged, images -> logits' in said
    assert [output.name for output in session.get_outputs()] == ['logits']
    for shape in SHAPES:
        assert_equal(session, lambda images: model(images, mode='tensor'), shape)
    metadata = metadata_of(session)
    assert json.loads(metadata['mean']) == [123.675, 116.28, 103.53]
    assert json.loads(metadata['std']) == [58.395, 57.12, 57.375]
    assert metadata['channel_order'] == 'RGB' and json.loads(metadata['merged']) is True
    assert json.loads(metadata['input_shape']) == ['batch', 3, 'height', 'width']
    assert json.loads(metadata['classes']) == list(CLASSES['classifier'])
    assert metadata['config'] == 'classifier.py' and metadata['checkpoint'] == 'classifier.pth'


@pytest.mark.slow
def test_backbone_of_a_detector(export):
    model, session = export('detector', '--no-deploy', '--shape', 65, 64)
    assert [output.name for output in session.get_outputs()] == [f'stage{i}' for i in range(1, 5)]
    for shape in SHAPES:
        assert_equal(session, model.backbone, shape)
    metadata = metadata_of(session)
    assert json.loads(metadata['strides']) == [4, 8, 16, 32]
    assert json.loads(metadata['channels']) == [16, 32, 64, 128]
    assert metadata['channel_order'] == 'RGB' and json.loads(metadata['merged']) is False
    assert 'classes' not in metadata


def test_one_size(export, capsys):
    model, session = export('segmentor', '--static', '--shape', 32, 50)
    assert session.get_inputs()[0].shape == [1, 3, 32, 50]
    assert capsys.readouterr().out.count('largest difference') == 1
    assert_equal(session, model.backbone, (1, 3, 32, 50))
    metadata = metadata_of(session)
    assert metadata['channel_order'] == 'BGR' and json.loads(metadata['mean']) == [0]


def test_backbone_of_a_classifier(export, capsys):
    model, session = export('classifier', '--backbone', '--static', '--shape', 64, 64, '--no-check')
    assert 'largest difference' not in capsys.readouterr().out
    assert_equal(session, model.backbone, (1, 3, 64, 64))


@pytest.mark.parametrize('options, message', [
    (['--shape', 31, 64], '--shape must be at least 32 32'),
    (['--output', 'nowhere/out.onnx'], "nowhere' does not exist"),
    (['--output', 'taken.onnx'], "'taken.onnx' is not written: it exists. --force overwrites it"),
    (['--cfg-options', 'model.backbone.token_mixers=dpconv'], 'dpconv_to_fixed.py'),
])
def test_refused_before_work_is_lost(options, message, monkeypatch, tmp_path, capsys):
    config = write_config('classifier', tmp_path / 'config.py', ARCH)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'taken.onnx').write_text('kept')
    assert run_main(monkeypatch, TOOL, config, *(['--output', 'out.onnx'] + options)) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out.onnx').exists() and (tmp_path / 'taken.onnx').read_text() == 'kept'


def test_config_without_partialnet(monkeypatch, tmp_path, capsys):
    pytest.importorskip('mmpretrain')
    config = ROOT / 'configs' / 'patconv' / 'resnet50_cifar10.py'
    assert run_main(monkeypatch, TOOL, config, '--output', tmp_path / 'out.onnx') == 2
    assert 'nothing was written: the model of the config (ImageClassifier) holds no PartialNet' in (
        capsys.readouterr().err)


def test_checkpoint_of_another_network(monkeypatch, tmp_path, capsys, randomize_norms):
    config = write_config('classifier', tmp_path / 'config.py', ARCH)
    other = write_config('classifier', tmp_path / 'other.py', dict(ARCH, depths=(1, 1, 2, 1)))
    write_checkpoint('classifier', other, tmp_path / 'other.pth', randomize_norms)
    assert run_main(monkeypatch, TOOL, config, tmp_path / 'other.pth', '--output', tmp_path / 'out.onnx') == 2
    said = capsys.readouterr().err
    assert 'nothing was written' in said and 'does not fit the config' in said and 'stages.2.1' in said
    assert not (tmp_path / 'out.onnx').exists()


def test_packages_that_are_missing_are_named(monkeypatch, tmp_path, capsys):
    config = write_config('classifier', tmp_path / 'config.py', ARCH)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *args: (
        None if name == 'onnxruntime' else find_spec(name, *args)))
    assert run_main(monkeypatch, TOOL, config, '--output', tmp_path / 'out.onnx') == 2
    said = ' '.join(capsys.readouterr().err.split())
    assert "onnxruntime must be installed to write ONNX: pip install onnxruntime" in said


def test_file_that_differs_is_not_written(monkeypatch, tmp_path, capsys):
    config = write_config('classifier', tmp_path / 'config.py', ARCH)
    monkeypatch.setattr(onnx_export, 'differences', lambda model, network, shapes: [float('nan')])
    assert run_main(monkeypatch, TOOL, config, '--output', tmp_path / 'out.onnx', '--static', '--shape', 64, 64) == 1
    assert 'nothing was written: onnxruntime differs from PyTorch' in capsys.readouterr().err
    assert not (tmp_path / 'out.onnx').exists()


@pytest.mark.skipif(onnx_export._has_graph_exporter() and importlib.util.find_spec('onnxscript') is None,
                    reason='onnxscript is not installed')
def test_differences_are_found():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    model = to_onnx(network, (1, 1, 8, 8), ['out'], dynamic=False)
    (exact, ) = differences(model, network, [(1, 1, 8, 8)])
    assert exact < 1e-6
    with torch.no_grad():
        network[0].bias += 1
    (moved, ) = differences(model, network, [(1, 1, 8, 8)])
    assert moved > 0.1
    (other, ) = differences(model, network[:0], [(1, 1, 8, 8)])
    assert other == float('inf')
    with pytest.raises(ValueError, match=r'cannot run the model on images of shape \(1, 1, 9, 8\)'):
        differences(model, network, [(1, 1, 9, 8)])
