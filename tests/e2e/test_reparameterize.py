# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""tools/model_converters/reparameterize_model.py: checkpoints of whole models into the merged form."""
import re

import pytest
import torch
from mmengine.config import Config

from partialnet_mm.checkpoint import read_checkpoint
from partialnet_mm.converters import reparameterize
from partialnet_mm.models import merge_model
from tests.helpers.libraries import build_model
from tests.helpers.tiny_models import CLASSES, LIBRARIES, write_checkpoint, write_config, write_model
from tests.helpers.tool_scripts import run_main

TOOL = 'tools/model_converters/reparameterize_model.py'


def tensors_in(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in tensors_in(output)]


def outputs_of(kind, model, image):
    """All of a classifier's and a segmentor's outputs; of a detector, what its second stage does not reorder."""
    if kind != 'detector':
        return tensors_in(model(image, mode='tensor'))
    maps = model.extract_feat(image)
    return tensors_in(maps) + tensors_in(model.rpn_head(maps))


@pytest.mark.parametrize('kind, ending', zip(LIBRARIES, ('safetensors', 'pth', 'safetensors')))
def test_merged_checkpoint_gives_the_same_outputs(kind, ending, monkeypatch, capsys, tmp_path, tiny_arch,
                                                  randomize_norms):
    config = write_config(kind, tmp_path / 'config.py', tiny_arch)
    model = write_checkpoint(kind, config, tmp_path / 'in.pth', randomize_norms)
    assert run_main(monkeypatch, TOOL, config, tmp_path / 'in.pth', out_file := tmp_path / f'out.{ending}') == 0
    said = capsys.readouterr().out
    assert 'merged backbone;' in said and '--cfg-options model.backbone.deploy=True' in said
    difference = float(re.search(r'random images (\S+) of their largest value', said).group(1))
    assert 0 < difference < 1e-5

    content = read_checkpoint(out_file)
    assert set(content) == {'meta', 'state_dict'}
    assert content['meta']['dataset_meta']['classes'] == (list if ending == 'safetensors' else tuple)(CLASSES[kind])
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({'model.backbone.deploy': True})
    merged = build_model(cfg).eval()
    merged.load_state_dict(content['state_dict'], strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for out, want in zip(outputs_of(kind, merged, image), outputs_of(kind, model, image)):
            assert (out - want).abs().max() < 1e-5 * want.abs().max()
    # The config in the checkpoint is that of the merged form.
    written = Config.fromstring(content['meta']['cfg'], '.py')
    assert written.model.backbone.deploy is True and written.default_scope == LIBRARIES[kind]


@pytest.fixture
def classifier(tmp_path, tiny_arch, randomize_norms):
    return write_model('classifier', tmp_path, tiny_arch, randomize_norms)


def test_averaged_weights_are_those_that_are_merged(classifier, monkeypatch, capsys, tmp_path):
    """A training with EMA saves the averages in the place of the weights, and the weights beside them."""
    config, checkpoint = classifier
    content = torch.load(checkpoint)
    content['ema_state_dict'] = {f'module.{name}': 0 * value for name, value in content['state_dict'].items()}
    torch.save(content, checkpoint)
    assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'out.pth') == 0
    assert 'averaged its weights (EMA)' in capsys.readouterr().out
    merged = torch.load(tmp_path / 'out.pth')['state_dict']
    assert torch.equal(merged['head.layers.1.fc.weight'], content['state_dict']['head.layers.1.fc.weight'])
    assert merged['backbone.stages.0.0.mlp.conv2.weight'].abs().sum() > 0


def test_weights_of_a_distributed_model(classifier, monkeypatch, tmp_path):
    config, checkpoint = classifier
    assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'plain.pth') == 0
    torch.save({f'module.{name}': value for name, value in torch.load(checkpoint)['state_dict'].items()}, checkpoint)
    assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'out.pth') == 0
    plain, out = (torch.load(tmp_path / f'{name}.pth')['state_dict'] for name in ('plain', 'out'))
    assert list(plain) == list(out) and all(torch.equal(plain[name], value) for name, value in out.items())


def test_nothing_is_overwritten_without_force(classifier, monkeypatch, capsys, tmp_path):
    config, checkpoint = classifier
    out = tmp_path / 'out.pth'
    out.write_text('precious')
    assert run_main(monkeypatch, TOOL, config, checkpoint, out) == 2
    assert 'it exists. --force overwrites it' in capsys.readouterr().err
    assert out.read_text() == 'precious'
    assert run_main(monkeypatch, TOOL, config, checkpoint, out, '--force') == 0
    assert torch.load(out)['meta']['epoch'] == 3


@pytest.mark.parametrize('options, message', [
    (['model.head.num_classes=5'], 'does not fit the config.*head.layers.1.fc.weight'),
    (['model.backbone.arch.embed_dim=32', 'model.head.in_channels=256'],
     'does not fit the config.*downsample_layers.0.conv.weight'),
    (['model.backbone.deploy=True'], 'does not fit the config.*Missing key'),
    (['model.backbone.norm_cfg.type=GN', 'model.backbone.norm_cfg.num_groups=2'], 'does not fit'),
])
def test_a_checkpoint_that_does_not_fit(options, message, classifier, monkeypatch, capsys, tmp_path):
    config, checkpoint = classifier
    assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'out.pth', '--cfg-options', *options) == 2
    said = capsys.readouterr().err
    assert re.search(f'nothing was written: .*{message}', said, re.DOTALL)
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize('norm_cfg, message', [
    (dict(type='GN', num_groups=2), 'the norm of Downsample is a GroupNorm'),
    (dict(type='SyncBN'), 'the norm of Downsample is a SyncBatchNorm that has seen no batch'),
], ids=['GN', 'SyncBN'])
def test_what_cannot_be_merged_is_refused_by_name(norm_cfg, message, monkeypatch, capsys, tmp_path, tiny_arch,
                                                    randomize_norms):
    config = write_config('classifier', tmp_path / 'c.py', tiny_arch)
    text = config.read_text().replace('model = dict(\n    backbone=dict(',
                                      f'model = dict(\n    backbone=dict(norm_cfg={norm_cfg!r}, ')
    config.write_text(text)
    write_checkpoint('classifier', config, tmp_path / 'in.pth', randomize_norms)
    assert run_main(monkeypatch, TOOL, config, tmp_path / 'in.pth', tmp_path / 'out.pth') == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out.pth').exists()


def test_a_merged_checkpoint_is_not_merged_again(classifier, monkeypatch, capsys, tmp_path):
    config, checkpoint = classifier
    assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'out.pth') == 0
    again = (config, tmp_path / 'out.pth', tmp_path / 'again.pth')
    assert run_main(monkeypatch, TOOL, *again) == 2
    assert 'or is merged already' in capsys.readouterr().err
    assert run_main(monkeypatch, TOOL, *again, '--cfg-options', 'model.backbone.deploy=True') == 2
    assert 'model.backbone.deploy is True in the config already' in capsys.readouterr().err


def test_a_model_without_anything_to_merge(monkeypatch, capsys, tmp_path, randomize_norms):
    pytest.importorskip('mmpretrain')
    config = tmp_path / 'config.py'
    config.write_text("default_scope = 'mmpretrain'\nmodel = dict(type='ImageClassifier', backbone=dict("
                      "type='ResNet', depth=18), neck=dict(type='GlobalAveragePooling'))")
    write_checkpoint('classifier', config, tmp_path / 'in.pth', randomize_norms)
    assert run_main(monkeypatch, TOOL, config, tmp_path / 'in.pth', tmp_path / 'out.pth') == 2
    assert 'ImageClassifier cannot be merged: none of its modules has switch_to_deploy()' in capsys.readouterr().err


@pytest.mark.parametrize('layer', ['downsample_layers.0.conv', 'stages.3.0.mlp.conv2'], ids=['first', 'last'])
@pytest.mark.parametrize('factor', [1.01, float('nan')])
def test_outputs_that_differ_are_refused(layer, factor, monkeypatch, capsys, tmp_path, tiny_arch, randomize_norms):
    """As if merging were wrong: a weight changes between the two, before all maps or in the last one only."""
    config, checkpoint = write_model('segmentor', tmp_path, tiny_arch, randomize_norms)

    def merge_wrongly(model):
        parts = merge_model(model)
        with torch.no_grad():
            model.backbone.get_submodule(layer).weight[0] *= factor
        return parts

    monkeypatch.setattr(reparameterize, 'merge_model', merge_wrongly)
    assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'out.pth') == 2
    assert 'the feature maps of the merged model differ by' in capsys.readouterr().err
    assert not (tmp_path / 'out.pth').exists()


def test_weights_that_are_not_finite(classifier, monkeypatch, capsys, tmp_path):
    config, checkpoint = classifier
    content = torch.load(checkpoint)
    content['state_dict']['head.layers.1.fc.bias'][0] = float('inf')
    torch.save(content, checkpoint)
    assert run_main(monkeypatch, TOOL, config, checkpoint, tmp_path / 'out.pth') == 2
    assert 'head.layers.1.fc.bias is not finite' in capsys.readouterr().err


@pytest.mark.parametrize('arguments, status, message', [
    (['missing.py', 'in.pth', 'out.pth'], 2, "config 'missing.py' does not exist"),
    (['{config}', 'missing.pth', 'out'], 2, "'out' must end in .safetensors or .pth"),
    (['{config}', '{config}', '{config}'], 2, 'must end in .safetensors or .pth'),
    (['{config}', 'missing.pth', 'out.pth'], 2, "checkpoint 'missing.pth' does not exist"),
    (['{config}', '{config}', 'out.pth'], 2, 'cannot be read'),
])
def test_wrong_files(arguments, status, message, classifier, monkeypatch, capsys):
    arguments = [argument.format(config=classifier[0]) for argument in arguments]
    assert run_main(monkeypatch, TOOL, *arguments) == status
    assert message in capsys.readouterr().err
