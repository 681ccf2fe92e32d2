# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Looking into classifiers: heat maps, channels of both parts, receptive fields, and the commands that draw them."""
import re
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.heat_maps import METHODS, cam_method, heat_maps
from partialnet_mm.analysis.map_layers import find_map_layer, stage_layers
from partialnet_mm.analysis.receptive_field import largest_pixels, receptive_field
from partialnet_mm.analysis.split_maps import split_maps, splitting_layers
from partialnet_mm.analysis.trained_classifier import find_class, load_classifier, prepare, seen_box
from partialnet_mm.models import PartialNet, PATConv2d
from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import write_config, write_model
from tests.helpers.tool_scripts import load_tool, run_main

TOOLS = 'tools/analysis_tools/'
GOOD = ('tiny.py', 'tiny.pth', 'a.png')


@pytest.fixture(autouse=True)
def beside_the_tools(monkeypatch):
    """Python finds what lies beside a script that it starts; scopes that are set end with the test."""
    monkeypatch.syspath_prepend(str(ROOT / TOOLS))
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder with two photographs of noise, wide and high, in a folder of a class."""
    folder = tmp_path_factory.mktemp('images') / 'red'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (('a.png', (60, 40)), ('b.png', (40, 60))):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(small, size))
    return folder


@pytest.fixture
def tiny(tmp_path, tiny_arch, randomize_norms):
    """Config and checkpoint of a tiny classifier at 64 x 64."""
    config, checkpoint = write_model('classifier', tmp_path, tiny_arch, randomize_norms)
    config.write_text(config.read_text() + 'test_dataloader = dict(dataset=dict(pipeline=[\n'
                      "    dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]))\n")
    return config, checkpoint


class SmallNetwork(nn.Module):
    """Two convolutions and a classifier; what follows the first may write into its map."""

    def __init__(self, inplace=False):
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.act = nn.ReLU(inplace)
        self.second = nn.Conv2d(5, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.second(self.act(self.first(x))).relu().mean((2, 3)))


# Grad-CAM

@pytest.mark.parametrize('inplace', [False, True])
def test_grad_cam_is_its_formula(inplace):
    """Channels weighted by their mean gradient, the positive part of the sum, enlarged and scaled to [0, 1]."""
    network, images, labels = SmallNetwork(inplace).eval(), torch.randn(2, 3, 16, 24), [2, 0]
    maps = network.first(images).detach().requires_grad_()
    logits = network.head(network.second(maps.relu()).relu().mean((2, 3)))
    gradient, = torch.autograd.grad(logits[0, 2] + logits[1, 0], maps)
    expected = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach()
    expected = expected - expected.amin((1, 2), keepdim=True)
    expected = expected / expected.amax((1, 2), keepdim=True)
    for parameter in network.parameters():
        parameter.requires_grad_(False)  # as in a network with frozen stages
    found = heat_maps(network, 'first', images, labels)
    assert found.shape == (2, 16, 24) and expected.std() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The map of a smaller layer has the size of the image, and its own scale.
    small = heat_maps(network, 'second', images, labels)
    assert small.shape == (2, 16, 24) and small.min() == 0 and small.max() == pytest.approx(1, abs=1e-5)


def test_heat_maps_are_the_librarys():
    from pytorch_grad_cam import HiResCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    network, images = SmallNetwork().eval(), torch.randn(1, 3, 16, 16)
    expected = HiResCAM(network, [network.second])(images, [ClassifierOutputTarget(1)])
    np.testing.assert_array_equal(heat_maps(network, 'second', images, [1], 'hirescam'), expected)
    assert np.abs(heat_maps(network, 'second', images, [1]) - expected).max() > 0.01


@pytest.mark.parametrize('method', METHODS)
def test_every_method_runs(method):
    found = heat_maps(SmallNetwork().eval(), 'second', torch.randn(1, 3, 16, 16), [1], method)
    assert found.shape == (1, 16, 16) and np.isfinite(found).all()


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install partialnet-mm\[benchmark\]'):
        cam_method()


# Receptive fields

def test_receptive_field_of_plain_convolutions():
    """Of ones, the gradient counts the ways from a pixel to the middle."""
    network = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(3)])
    for layer in network:
        nn.init.ones_(layer.weight)
    row = np.convolve(np.convolve([1, 1, 1], [1, 1, 1]), [1, 1, 1])
    for layer, ways in (('2', row), ('0', np.ones(3))):
        field = receptive_field(network, layer, torch.randn(2, 1, 17, 15))
        expected = np.zeros((17, 15))
        reach = len(ways) // 2
        expected[8 - reach:9 + reach, 7 - reach:8 + reach] = np.outer(ways, ways)
        np.testing.assert_array_equal(field, expected)


@pytest.mark.parametrize('part, count', [(0.1, 1), (0.4, 1), (0.5, 2), (0.7, 2), (0.9, 3), (0.95, 4), (1, 4)])
def test_largest_pixels(part, count):
    chosen = largest_pixels(torch.tensor([[1., 3.], [4., 2.]]) / 7, part)
    assert chosen.sum() == count
    assert chosen.flatten()[[2, 1, 3, 0]].tolist() == [True] * count + [False] * (4 - count)


@pytest.mark.parametrize('contributions, part, message', [
    (torch.ones(2, 2), 0, r'part must lie in \(0, 1\], got 0'), (torch.ones(2, 2), 1.5, 'got 1.5'),
    (torch.zeros(2, 2), 0.5, 'no pixel contributes')])
def test_largest_pixels_refuses(contributions, part, message):
    with pytest.raises(ValueError, match=message):
        largest_pixels(contributions, part)


# Both parts of the channels

@pytest.mark.parametrize('mixer', ['pat_ch', 'pat_sf', 'full_ch', 'full_sf', 'partial_conv'])
@pytest.mark.parametrize('spatial_attention', ['partial', 'full', 'none'])
def test_split_maps_are_the_mixers(mixer, spatial_attention, tiny_arch, randomize_norms):
    """The parts of what the mixer is given and returns, computed by its own layers."""
    network = PartialNet(tiny_arch, token_mixers=mixer, spatial_attention=spatial_attention)
    randomize_norms(network).eval()
    image = torch.randn(1, 3, 64, 96)
    name = 'stages.2.1.token_mixer'
    assert name in splitting_layers(network)
    given = []
    layer, block = network.get_submodule(name), network.stages[2][1]
    with torch.no_grad():
        handles = [layer.register_forward_pre_hook(lambda module, args: given.append(args[0])),
                   block.register_forward_pre_hook(lambda module, args: given.append(args[0]))]
        network(image)
        for handle in handles:
            handle.remove()
        _, x = given
        found = split_maps(network, [name], image)[name]
        convolved = layer.conv(x[:, :16])
        first = 0 if mixer.startswith('full') else 16
        attended = torch.cat((convolved, x[:, 16:]), 1)[:, first:]
        expected = [x[0, :16], convolved[0], attended[0], layer(x)[0, first:]]
        for maps, own in zip(found, expected):
            torch.testing.assert_close(maps, own)
        assert found.first_attended == first
        if mixer.endswith('_ch'):
            torch.testing.assert_close(found.gate, layer.gate(attended).flatten())
        else:
            assert found.gate is None
        if spatial_attention == 'none':
            assert found.spatial_gate is None
        else:
            mixed = block.mlp(layer(x) if not mixer.endswith('_sf') else x + layer(x))
            seen = mixed if spatial_attention == 'full' else mixed[:, :32]
            torch.testing.assert_close(
                found.spatial_gate, F.hardsigmoid(block.spatial_attention.logit_conv(seen))[0, 0])


def test_split_maps_of_patconv():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), PATConv2d(16, 16, 3, stride=2, padding=1), PATConv2d(
        16, 16, 3, padding=1, split_ratio=1)).eval()
    assert splitting_layers(network) == ['1']  # the last one convolves all channels
    image = torch.randn(1, 3, 12, 12)
    found = split_maps(network, ['1'], image)['1']
    assert [tuple(maps.shape) for maps in found[:4]] == [(4, 10, 10), (4, 5, 5), (12, 10, 10), (12, 5, 5)]
    torch.testing.assert_close(torch.cat((found.convolved_out, found.attended_out)), network[:2](image)[0])
    torch.testing.assert_close(found.gate, network[1].gate(F.avg_pool2d(found.attended_in, 2)[None]).flatten())
    with pytest.raises(ValueError, match=r"layer '0' does not divide its channels .* allowed are \['1'\]"):
        split_maps(network, ['0'], image)
    with pytest.raises(ValueError, match='a batch of 2'):
        split_maps(network, ['1'], torch.cat((image, image)))


# Layers

@pytest.mark.parametrize('backbone, names', [
    (dict(type='ResNet', depth=18), ['relu', 'layer1', 'layer2', 'layer3', 'layer4']),
    (dict(type='MobileNetV2', widen_factor=0.25), ['layer1', 'layer2', 'layer3', 'layer5', 'conv2']),
    (dict(type='ConvNeXt', arch='atto'), ['stages.0', 'stages.1', 'stages.2', 'stages.3']),
    (dict(type='PartialNet', arch='t0'), ['stages.0.0', 'stages.1.1', 'stages.2.5', 'stages.3.3']),
    (dict(type='PartialNet', arch='t0', out_indices=(1, 3), deploy=True),
     ['stages.0.0', 'norm1', 'stages.2.5', 'norm3']),
])
def test_stages_of_any_network(backbone, names):
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone)).eval()
    found = stage_layers(model, torch.randn(1, 3, 64, 96))
    assert [layer.name for layer in found] == [f'backbone.{name}' for name in names]
    assert [(layer.height, layer.width) for layer in found[-4:]] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    last = find_map_layer(model, torch.randn(1, 3, 64, 96), found[-1].name)
    assert last == found[-1]


def test_networks_without_maps_and_unknown_layers():
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = dict(type='VisionTransformer', arch='deit-t', img_size=32)
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone)).eval()
    with pytest.raises(ValueError, match='no layer of VisionTransformer returns maps'):
        stage_layers(model, torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="'backbone.layers.3' does not return one map"):
        find_map_layer(model, torch.randn(1, 3, 32, 32), 'backbone.layers.3')
    with pytest.raises(ValueError, match="'backbone.patch_embed.projector' is unknown; .*'backbone.patch_embed.proj"):
        find_map_layer(model, torch.randn(1, 3, 32, 32), 'backbone.patch_embed.projector')


# Trained classifiers

@pytest.mark.parametrize('steps, height, width, expected', [
    (["dict(type='Resize', scale=64)"], 32, 32, (0, 0, 32, 32)),
    (["dict(type='Resize', scale=(64, 48))"], 375, 500, (0, 0, 500, 375)),
    # The middle 224 of 248: 271 of 300 pixels.
    (["dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic')",
      "dict(type='CenterCrop', crop_size=224)"], 300, 500, (115, 15, 385, 285)),
    (["dict(type='CenterCrop', crop_size=(20, 40))"], 100, 100, (40, 30, 60, 70)),
])
def test_part_that_the_network_sees(tiny, steps, height, width, expected):
    config, checkpoint = tiny
    pipeline = ', '.join(["dict(type='LoadImageFromFile')", *steps, "dict(type='PackInputs')"])
    config.write_text(config.read_text() + f'test_dataloader = dict(dataset=dict(pipeline=[{pipeline}]))\n')
    classifier = load_classifier(str(config), str(checkpoint))
    assert seen_box(classifier, height, width) == pytest.approx(expected, abs=1)


def test_loaded_classifier_is_the_trained_one(tiny, images, tmp_path, tiny_arch, randomize_norms):
    config, checkpoint = tiny
    classifier = load_classifier(str(config), str(checkpoint))
    assert tuple(classifier.classes) == ('blue', 'green', 'red') and not classifier.model.training
    saved = torch.load(checkpoint, weights_only=False)['state_dict']
    assert all(torch.equal(value, saved[name]) for name, value in classifier.model.state_dict().items())
    inputs = prepare(classifier, [str(images / 'a.png'), str(images / 'b.png')])
    picture = cv2.resize(cv2.imread(str(images / 'b.png')), (64, 64))[..., ::-1].astype(np.float32)
    expected = (picture - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)
    np.testing.assert_allclose(inputs[1].permute(1, 2, 0), expected, atol=1e-4)


@pytest.mark.parametrize('classes, given, expected', [
    (('cat', 'dog'), 'dog', 1), (('cat', 'dog'), '0', 0), (None, '1', 1), (('1', '0'), '1', 0)])
def test_find_class(classes, given, expected):
    assert find_class(classes, 2, given) == expected


@pytest.mark.parametrize('given, message', [
    ('dgo', r"class 'dgo' is unknown; allowed are 0 to 1 and names, such as \['dog'\]"),
    ('2', 'allowed are 0 to 1'), ('-1', 'allowed are 0 to 1')])
def test_find_class_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        find_class(('cat', 'dog'), 2, given)


# The commands

def test_grad_cam_draws_networks_side_by_side(tiny, images, tmp_path, monkeypatch, capsys):
    drawn = []
    tool = TOOLS + 'grad_cam.py'
    common = (*tiny, images, '--model', *tiny, '--names', 'one', 'two', '--output', tmp_path / 'cam.png')
    status = run_main(monkeypatch, tool, *common, '--stages', '--class', 'red',
                      draw=lambda columns, path: drawn.extend(columns))
    assert status == 0, capsys.readouterr().err
    assert [column.heading for column in drawn[1:5]] == [
        'one\nstages.0.0, 16 x 16', 'one\nstages.1.0, 8 x 8', 'one\nstages.2.1, 4 x 4', 'one\nstages.3.0, 2 x 2']
    assert [column.heading[:3] for column in drawn[5:]] == ['two'] * 4
    assert drawn[0].titles == ['red/a.png', 'red/b.png']
    classifier = load_classifier(*map(str, tiny))
    inputs = prepare(classifier, [str(images / 'a.png'), str(images / 'b.png')])
    scores = classifier.model(inputs).softmax(1)
    best = [f'{classifier.classes[score.argmax()]} {score.max():.2f}' for score in scores]
    assert classifier.classes[scores[1].argmax()] == 'green'  # or the next line tests nothing
    assert {column.titles[1] for column in drawn[1:]} == {f'{best[1]} (red {scores[1, 2]:.2f})'}
    # Photographs keep their shape, and each stage says something else, which is the library's.
    assert [picture.shape for picture in drawn[3].pictures] == [(133, 200, 3), (200, 133, 3)]
    assert np.abs(drawn[1].pictures[1].astype(float) - drawn[2].pictures[1]).mean() > 5
    heat = heat_maps(classifier.model, 'backbone.stages.1.0', inputs, [2, 2])[1]
    photograph = cv2.imread(str(images / 'b.png'))[..., ::-1]
    np.testing.assert_array_equal(
        drawn[2].pictures[1], load_tool(tool).draw_over(photograph, heat, (0, 0, *photograph.shape[1::-1])))
    np.testing.assert_array_equal(drawn[2].pictures[1], drawn[6].pictures[1])

    drawn.clear()
    layers = ('backbone.stages.3.0', 'backbone.stages.0.0')
    status = run_main(monkeypatch, tool, *common, '--layer', *layers, draw=lambda columns, path: drawn.extend(columns))
    assert status == 0
    assert [column.heading for column in drawn[1:]] == [
        f'{name}\nstages.{layer}' for name in ('one', 'two') for layer in ('3.0, 2 x 2', '0.0, 16 x 16')]
    # Where nothing speaks for the class, the map says so.
    assert heat_maps(classifier.model, layers[0], inputs, scores.argmax(1).tolist()).max() == 0
    assert drawn[1].titles == [f'{title}, empty' for title in best]

    assert run_main(monkeypatch, tool, *common) == 0
    assert '2 images and 2 networks' in capsys.readouterr().out
    picture = cv2.imread(str(tmp_path / 'cam.png'))
    assert picture.shape[:2] == (382, 495) and picture.std() > 30


def test_heat_covers_what_the_network_has_seen():
    tool = load_tool(TOOLS + 'grad_cam.py')
    photograph = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    heat = np.linspace(0, 1, 16, dtype=np.float32)[None].repeat(8, 0)
    picture = tool.draw_over(photograph, heat, (50, 0, 150, 100))
    assert picture.shape == (100, 200, 3)
    changed = (picture != photograph).any(axis=(0, 2))
    assert changed.tolist() == [False] * 50 + [True] * 100 + [False] * 50
    blue, red = picture[:, 50:60].mean((0, 1)), picture[:, 140:150].mean((0, 1))
    assert blue[2] > blue[0] and red[0] > red[2]


def test_feature_maps_draws_the_last_mixer_of_each_stage(tiny, images, tmp_path, monkeypatch, capsys):
    output = tmp_path / 'maps.png'
    tool = TOOLS + 'feature_maps.py'
    assert run_main(monkeypatch, tool, *tiny, images / 'a.png', '--output', output) == 0
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in capsys.readouterr().out.splitlines()
            if line.startswith('| stages')]
    assert [row[:3] for row in rows] == [
        ['stages.0.0.token_mixer', '4', '12'], ['stages.1.0.token_mixer', '8', '24'],
        ['stages.2.1.token_mixer', '16', '48'], ['stages.3.0.token_mixer', '32', '96']]
    classifier = load_classifier(*map(str, tiny))
    name = 'backbone.stages.2.1.token_mixer'
    maps = split_maps(classifier.model, [name], prepare(classifier, [str(images / 'a.png')]))[name]
    values = [value for gate in (maps.gate, maps.spatial_gate) for value in (gate.min(), gate.mean(), gate.max())]
    assert rows[2][3:] == [f'{value:.2f}' for value in values]
    assert rows[3][3:6] == ['-'] * 3  # PAT_sf has no channel gates
    assert cv2.imread(str(output)).shape == (1200, 1320, 3)
    # More channels than there are: cells stay empty.
    assert run_main(monkeypatch, tool, *tiny, images / 'a.png', '--output', output, '--channels', 6, '--layer',
                    'backbone.stages.0.0.token_mixer') == 0
    assert cv2.imread(str(output)).shape == (300, 1800, 3)


def test_receptive_field_prints_and_draws(tiny, images, tmp_path, monkeypatch, capsys):
    tool, output = TOOLS + 'receptive_field.py', tmp_path / 'fields.png'
    # Three images in batches of two and one: each counts as much.
    options = ('--batch-size', 2, '--output', output)
    assert run_main(monkeypatch, tool, *tiny, images, images / 'a.png', '--stages', *options) == 0
    out = capsys.readouterr().out
    assert 'Share of the input (64 x 64 pixels) that holds a part of the gradient, 3 images' in out
    found = re.findall(r'\| classifier \| (.*), (\d+) x \d+ \| ([\d.]+)% \| ([\d.]+)% \|', out)
    assert [row[:2] for row in found] == [
        ('stages.0.0', '16'), ('stages.1.0', '8'), ('stages.2.1', '4'), ('stages.3.0', '2')]
    classifier = load_classifier(*map(str, tiny))
    field = receptive_field(classifier.model, 'backbone.stages.2.1', prepare(
        classifier, [str(images / name) for name in ('a.png', 'b.png', 'a.png')]))
    shares = [f'{largest_pixels(field, part).double().mean() * 100:.2f}' for part in (0.5, 0.9)]
    assert list(found[2][2:]) == shares
    assert cv2.imread(str(output)).shape == (290, 1120, 3)


@pytest.mark.parametrize('tool, arguments, message', [
    ('grad_cam', ('missing.py', 'tiny.pth', 'a.png'), "config 'missing.py' does not exist"),
    ('grad_cam', ('tiny.py', 'missing.pth', 'a.png'), "checkpoint 'missing.pth' does not exist"),
    ('receptive_field', ('tiny.py', 'broken.pth', 'a.png'), "checkpoint 'broken.pth' .* cannot be read"),
    ('feature_maps', ('tiny.py', 'other.pth', 'a.png'), "'other.pth' belongs to another network than 'tiny.py'"),
    ('grad_cam', ('detector.py', 'tiny.pth', 'a.png'), "'detector.py' is of no classifier: .* default_scope 'mmdet'"),
    ('grad_cam', ('headless.py', 'tiny.pth', 'a.png'), "'headless.py' is of no classifier"),
    ('grad_cam', ('tiny.py', 'tiny.pth', 'nothing.png'), 'nothing.png.* does not exist'),
    ('receptive_field', ('tiny.py', 'tiny.pth', 'broken.png'), 'broken.png.* do not decode'),
    ('grad_cam', ('tiny.py', 'tiny.pth', 'empty'), "no image in folder 'empty'"),
    ('grad_cam', ('tiny.py', 'tiny.pth', *['a.png'] * 17), '17 images are more than the 16'),
    ('grad_cam', (*GOOD, '--class', 'violet'), "class 'violet' is unknown"),
    ('grad_cam', (*GOOD, '--layer', 'backbone.stages.9'), "layer 'backbone.stages.9' is unknown"),
    ('receptive_field', (*GOOD, '--layer', 'head'), "layer 'head' does not return one map"),
    ('feature_maps', (*GOOD, '--layer', 'head'), "layer 'head' does not divide .*token_mixer"),
    ('grad_cam', (*GOOD, '--names', 'a', 'b'), '--names must be 1 different names'),
    ('grad_cam', (*GOOD, '--model', 'tiny.py', 'tiny.pth'), '--names must be 2 different names'),
    ('grad_cam', (*GOOD, '--output', 'out.mp3'), r"--output 'out.mp3' must end in one of \."),
    ('feature_maps', (*GOOD, '--output', 'no/a.png'), "'no/a.png': its folder does not exist"),
])
def test_bad_input(tool, arguments, message, tmp_path, monkeypatch, capsys, tiny_arch, randomize_norms):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    config, checkpoint = write_model('classifier', tmp_path, tiny_arch, randomize_norms)
    config.rename('tiny.py')
    checkpoint.rename('tiny.pth')
    write_config('detector', tmp_path / 'detector.py', tiny_arch)
    (tmp_path / 'headless.py').write_text("_base_ = './tiny.py'\nmodel = dict(head=None)\n")
    (tmp_path / 'broken.pth').write_bytes(b'PK')
    torch.save(dict(state_dict={'backbone.weight': torch.ones(1)}), tmp_path / 'other.pth')
    cv2.imwrite('a.png', np.full((64, 64, 3), 99, np.uint8))
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG')
    (tmp_path / 'empty').mkdir()
    output = () if '--output' in arguments else ('--output', 'out.png')
    assert run_main(monkeypatch, f'{TOOLS}{tool}.py', *arguments, *output) == 1
    said = capsys.readouterr().err
    assert said.startswith('nothing was ') and re.search(message, said), said
    assert not (tmp_path / 'out.png').exists()


@pytest.mark.parametrize('tool, arguments, message', [
    ('feature_maps', ('a.png', 'b.png', '--output', 'x.png'), 'one image file is drawn, got a.png b.png'),
    ('feature_maps', ('a.png', '--output', 'x.png', '--channels', 0), '--channels must be positive, got 0'),
    ('receptive_field', ('a.png', '--count', 0), '--count must be positive, got 0'),
    ('receptive_field', ('a.png', '--batch-size', -1), '--batch-size must be positive, got -1'),
    ('grad_cam', ('a.png', '--output', 'x.png', '--method', 'cam'), "invalid choice: 'cam'"),
])
def test_bad_arguments(tool, arguments, message, monkeypatch, capsys):
    assert run_main(monkeypatch, f'{TOOLS}{tool}.py', 'config.py', 'checkpoint.pth', *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_network_without_split(tiny, images, tmp_path, monkeypatch, capsys):
    config, checkpoint = tiny
    config.write_text(config.read_text().replace('model = dict(\n    backbone=dict(',
                                                 "model = dict(\n    backbone=dict(token_mixers='conv', "))
    with DefaultScope.overwrite_default_scope('mmengine'):
        torch.save(dict(state_dict=build_model(Config.fromfile(config)).state_dict()), checkpoint)
    output = tmp_path / 'x.png'
    assert run_main(monkeypatch, TOOLS + 'feature_maps.py', *tiny, images / 'a.png', '--output', output) == 1
    assert 'no layer of this network divides its channels' in capsys.readouterr().err
    assert run_main(monkeypatch, TOOLS + 'grad_cam.py', *tiny, images / 'a.png', '--output', output) == 0
    assert output.exists()
