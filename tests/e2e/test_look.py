# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""tools/analysis_tools/look.py: what its subcommands print and draw, and the errors they report."""
import re

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.look import heat_maps, largest_pixels, receptive_field, split_maps
from partialnet_mm.analysis.trained_classifier import load_classifier, prepare
from tests.helpers.tiny_models import noise_images, write_config, write_small_classifier
from tests.helpers.tool_scripts import run_main

TOOL = 'tools/analysis_tools/look.py'
GOOD = ('tiny.py', 'tiny.pth', 'a.png')


@pytest.fixture
def images(tmp_path):
    return noise_images(tmp_path)


@pytest.fixture
def tiny(tmp_path, tiny_arch, randomize_norms):
    return write_small_classifier(tmp_path, tiny_arch, randomize_norms)


@pytest.fixture
def drawn(monkeypatch):
    """The axes with a picture of each figure that is saved, as (title, pixels), columns first."""
    figures = []
    save = Figure.savefig

    def savefig(figure, path, **options):
        axes = sorted((cell for cell in figure.axes if cell.images), key=lambda cell: (
            cell.get_subplotspec().colspan.start, cell.get_subplotspec().rowspan.start))
        figures.append([(cell.get_title(), np.asarray(cell.images[0].get_array())) for cell in axes])
        save(figure, path, **options)

    monkeypatch.setattr(Figure, 'savefig', savefig)
    return figures


def table_rows(out, start):
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in out.splitlines() if line.startswith(start)]


def test_grad_cam_draws_networks_side_by_side(tiny, images, tmp_path, monkeypatch, capsys, drawn):
    common = ('grad_cam', *tiny, images, '--model', *tiny, '--names', 'one', 'two', '--output', tmp_path / 'cam.png')
    assert run_main(monkeypatch, TOOL, *common, '--stages', '--class', 'red') == 0, capsys.readouterr().err
    cells = drawn.pop()
    classifier = load_classifier(Config.fromfile(tiny[0]), str(tiny[1]))
    inputs = prepare(classifier, [str(images / 'a.png'), str(images / 'b.png')])
    scores = classifier.model(inputs).softmax(1)
    best = [f'{classifier.classes[score.argmax()]} {score.max():.2f}' for score in scores]
    assert classifier.classes[scores[1].argmax()] == 'green'  # or the next lines test nothing
    second = f'{best[1]} (red {scores[1, 2]:.2f})'
    titles = [title for title, _ in cells]
    assert titles[:2] == ['image\n\nred/a.png', 'red/b.png']
    stages = ['stages.0, 16 x 16', 'stages.1, 8 x 8', 'stages.2, 4 x 4', 'stages.3, 2 x 2']
    assert [title.split('\n\n')[0] for title in titles[2::2]] == [
        f'{name}\n{stage}' for name in ('one', 'two') for stage in stages]
    assert set(titles[3::2]) == {second}
    # Photographs keep their shape. Each stage has another heat map, the library's.
    photographs, first, other = cells[1][1], cells[3][1], cells[5][1]
    assert [picture.shape for _, picture in cells[:2]] == [(133, 200, 3), (200, 133, 3)]
    assert np.abs(first.astype(float) - other).mean() > 5
    heat = heat_maps(classifier.model, 'backbone.stages.1.0', inputs, [2, 2])[1]
    from pytorch_grad_cam.utils.image import show_cam_on_image
    heat = np.clip(cv2.resize(heat, (133, 200)), 0, 1)
    expected = show_cam_on_image(photographs.astype(np.float32) / 255, heat, use_rgb=True)
    np.testing.assert_array_equal(other, expected)
    np.testing.assert_array_equal(other, cells[13][1])  # the same network again

    layers = ('backbone.stages.3.0', 'backbone.stages.0.0')
    assert run_main(monkeypatch, TOOL, *common, '--layer', *layers) == 0
    titles = [title for title, _ in drawn.pop()]
    # Where no pixel speaks for the class, the title says so.
    marks = {layer: [', empty' * bool(heat.max() == 0) for heat in heat_maps(
        classifier.model, layer, inputs, scores.argmax(1).tolist())] for layer in layers}
    assert marks[layers[0]] == [', empty'] * 2
    assert titles[2:] == [text for name in ('one', 'two') for layer, size in zip(layers, (2, 16)) for text in (
        f'{name}\n{layer.removeprefix("backbone.")}, {size} x {size}\n\n{best[0]}{marks[layer][0]}',
        f'{best[1]}{marks[layer][1]}')]

    assert run_main(monkeypatch, TOOL, *common) == 0
    assert '2 images and 2 networks' in capsys.readouterr().out
    picture = cv2.imread(str(tmp_path / 'cam.png'))
    assert picture.shape[:2] == (382, 495) and picture.std() > 30


def test_heat_covers_what_the_network_has_seen(tiny, images, tmp_path, monkeypatch, drawn):
    config, checkpoint = tiny
    config.write_text(config.read_text().replace("dict(type='Resize', scale=64)",
                                                 "dict(type='CenterCrop', crop_size=(36, 40))"))
    assert run_main(monkeypatch, TOOL, 'grad_cam', *tiny, images / 'a.png', '--output', tmp_path / 'cam.png',
                    '--layer', 'backbone.stages.0.0') == 0
    (_, photograph), (_, heat) = drawn.pop()
    changed = (photograph != heat).any(axis=(0, 2))
    assert photograph.shape == heat.shape == (133, 200, 3)
    assert changed.tolist() == [False] * 40 + [True] * 120 + [False] * 40  # the middle 36 of 60 pixels


def test_feature_maps_draws_the_last_mixer_of_each_stage(tiny, images, tmp_path, monkeypatch, capsys):
    output = tmp_path / 'maps.png'
    assert run_main(monkeypatch, TOOL, 'feature_maps', *tiny, images / 'a.png', '--output', output) == 0
    rows = table_rows(capsys.readouterr().out, '| stages')
    assert [row[:3] for row in rows] == [
        ['stages.0.0.token_mixer', '4', '12'], ['stages.1.0.token_mixer', '8', '24'],
        ['stages.2.1.token_mixer', '16', '48'], ['stages.3.0.token_mixer', '32', '96']]
    classifier = load_classifier(Config.fromfile(tiny[0]), str(tiny[1]))
    name = 'backbone.stages.2.1.token_mixer'
    maps = split_maps(classifier.model, [name], prepare(classifier, [str(images / 'a.png')]))[name]
    values = [value for gate in (maps.gate, maps.spatial_gate) for value in (gate.min(), gate.mean(), gate.max())]
    assert rows[2][3:] == [f'{value:.2f}' for value in values]
    assert rows[3][3:6] == ['-'] * 3  # PAT_sf has no channel gates
    assert cv2.imread(str(output)).shape == (1200, 1320, 3)
    # More channels than the layer has: cells are empty.
    assert run_main(monkeypatch, TOOL, 'feature_maps', *tiny, images / 'a.png', '--output', output, '--channels', 6,
                    '--layer', 'backbone.stages.0.0.token_mixer') == 0
    assert cv2.imread(str(output)).shape == (300, 1800, 3)


def test_receptive_field_prints_and_draws(tiny, images, tmp_path, monkeypatch, capsys):
    output = tmp_path / 'fields.png'
    # Three images in batches of two and one: each counts the same.
    options = ('--batch-size', 2, '--output', output)
    assert run_main(monkeypatch, TOOL, 'receptive_field', *tiny, images, images / 'a.png', '--stages', *options) == 0
    out = capsys.readouterr().out
    assert 'Fraction of the input (64 x 64 pixels) that holds a fraction of the gradient, 3 images' in out
    found = re.findall(r'\| classifier \| (.*), (\d+) x \d+ \| ([\d.]+)% \| ([\d.]+)% \|', out)
    assert [row[:2] for row in found] == [
        ('stages.0', '16'), ('stages.1', '8'), ('stages.2', '4'), ('stages.3', '2')]
    classifier = load_classifier(Config.fromfile(tiny[0]), str(tiny[1]))
    field = receptive_field(classifier.model, 'backbone.stages.2.1', prepare(
        classifier, [str(images / name) for name in ('a.png', 'b.png', 'a.png')]))
    areas = [f'{largest_pixels(field, fraction).double().mean() * 100:.2f}' for fraction in (0.5, 0.9)]
    assert list(found[2][2:]) == areas
    assert cv2.imread(str(output)).shape == (290, 1120, 3)


@pytest.mark.parametrize('command, arguments, message', [
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
    ('receptive_field', (*GOOD, '--layer', 'head'), "layer 'head' does not return one feature map"),
    ('feature_maps', (*GOOD, '--layer', 'head'), "layer 'head' does not split .*token_mixer"),
    ('feature_maps', (*GOOD, 'b.png'), 'one image file is drawn, got a.png b.png'),
    ('grad_cam', (*GOOD, '--names', 'a', 'b'), '--names must be 1 different names'),
    ('grad_cam', (*GOOD, '--model', 'tiny.py', 'tiny.pth'), '--names must be 2 different names'),
])
def test_bad_input(command, arguments, message, tmp_path, monkeypatch, capsys, tiny, tiny_arch):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    for path in tiny:
        path.rename(f'tiny{path.suffix}')
    write_config('detector', tmp_path / 'detector.py', tiny_arch)
    (tmp_path / 'headless.py').write_text("_base_ = './tiny.py'\nmodel = dict(head=None)\n")
    (tmp_path / 'broken.pth').write_bytes(b'PK')
    torch.save(dict(state_dict={'backbone.weight': torch.ones(1)}), tmp_path / 'other.pth')
    cv2.imwrite('a.png', np.full((64, 64, 3), 99, np.uint8))
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG')
    (tmp_path / 'empty').mkdir()
    assert run_main(monkeypatch, TOOL, command, *arguments, '--output', 'out.png') == 2
    printed = capsys.readouterr().err
    assert printed.startswith('look.py: nothing was drawn: ') and re.search(message, printed), printed
    assert not (tmp_path / 'out.png').exists()


@pytest.mark.parametrize('command, arguments, message', [
    ('grad_cam', ('--output', 'out.mp3'), r"argument --output: 'out\.mp3' must end in one of \."),
    ('feature_maps', ('--output', 'no/a.png'), "argument --output: the folder of 'no/a.png' does not exist"),
    ('feature_maps', ('--output', 'x.png', '--channels', 0), '--channels: must be a number of at least 1, got 0'),
    ('receptive_field', ('--count', 0), '--count: must be a number of at least 1, got 0'),
    ('receptive_field', ('--batch-size', 'x'), '--batch-size: must be a number of at least 1, got x'),
    ('grad_cam', ('--output', 'x.png', '--method', 'cam'), "invalid choice: 'cam'"),
])
def test_bad_arguments(command, arguments, message, monkeypatch, capsys):
    assert run_main(monkeypatch, TOOL, command, 'config.py', 'checkpoint.pth', 'a.png', *arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_network_without_split(tiny, images, tmp_path, monkeypatch, capsys):
    config, checkpoint = tiny
    config.write_text(config.read_text().replace('model = dict(\n    backbone=dict(',
                                                 "model = dict(\n    backbone=dict(token_mixers='conv', "))
    torch.save(dict(state_dict=build_model(Config.fromfile(config)).state_dict()), checkpoint)
    output = tmp_path / 'x.png'
    assert run_main(monkeypatch, TOOL, 'feature_maps', *tiny, images / 'a.png', '--output', output) == 2
    assert 'no layer of this network splits its channels' in capsys.readouterr().err
    assert run_main(monkeypatch, TOOL, 'grad_cam', *tiny, images / 'a.png', '--output', output) == 0
    assert output.exists()
