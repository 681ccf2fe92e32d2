# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""tools/analysis_tools/get_flops.py on models of each library, none of whose data exists."""
import pytest
from mmengine.config import Config

from partialnet_mm.analysis.flops import count_multiply_adds
from tests.helpers.libraries import ROOT, build_model, shipped_config
from tests.helpers.tiny_models import write_config
from tests.helpers.tool_scripts import run_main

TOOL = 'tools/analysis_tools/get_flops.py'


@pytest.fixture
def counts(monkeypatch, capsys):
    """Runs the command; the table's rows as {module: (Params in M, multiply-adds in G)}."""

    def run(config, *options):
        assert run_main(monkeypatch, TOOL, config, *options) == 0
        rows = [line.strip('| ').split(' | ') for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
        return {row[0]: tuple(map(float, row[-2:])) for row in rows if row[-1] != 'multiply-adds (G)'}

    return run


def test_classifier(counts, tmp_path, tiny_arch):
    config = write_config('classifier', tmp_path / 'c.py', tiny_arch)
    model = build_model(Config.fromfile(config))
    table = counts(config, '--shape', 96, 64)
    assert set(table) == {'backbone', 'head', 'all'}
    backbone = count_multiply_adds(model.backbone, (1, 3, 96, 64)) / 1e9
    head = (128 * 24 + 24 * 3) / 1e9
    assert table['backbone'][1] == pytest.approx(backbone, abs=5e-4)
    assert table['all'][1] == pytest.approx(backbone + head, abs=5e-4)
    assert table['all'][0] == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=5e-3)


def test_merged_form(counts, tmp_path, tiny_arch):
    config = write_config('classifier', tmp_path / 'c.py', tiny_arch)
    model = build_model(Config.fromfile(config))
    model.backbone.switch_to_deploy()
    table = counts(config, '--shape', 416, 416, '--deploy')
    assert table['all'][1] == pytest.approx(count_multiply_adds(model, (1, 3, 416, 416)) / 1e9, abs=5e-4)
    assert table['all'][1] < counts(config, '--shape', 416, 416)['all'][1]


def test_two_stages_get_1000_proposals(counts, tmp_path, tiny_arch):
    config = write_config('detector', tmp_path / 'd.py', tiny_arch)
    table = counts(config, '--shape', 64, 96)
    assert set(table) == {'backbone', 'neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head', 'all'}
    pixels = sum(height * width for height, width in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2)))
    assert table['rpn_head'][1] == pytest.approx(pixels * (64 * 64 * 9 + 64 * 15) / 1e9, abs=5e-4)
    box = 1000 * (64 * 49 * 256 + 256 * 256 + 256 * (4 + 4))
    assert table['roi_head.bbox_head'][1] == pytest.approx(box / 1e9, abs=5e-4)
    mask = 100 * (14 * 14 * (2 * 64 * 64 * 9 + 64 * 64 * 4) + 28 * 28 * 64 * 3)
    assert table['roi_head.mask_head'][1] == pytest.approx(mask / 1e9, abs=5e-4)
    assert table['all'][1] == pytest.approx(sum(row[1] for part, row in table.items() if part != 'all'), abs=3e-3)


def test_segmentor(counts, tmp_path, tiny_arch):
    table = counts(write_config('segmentor', tmp_path / 's.py', tiny_arch), '--shape', 256, 256)
    assert set(table) == {'backbone', 'neck', 'decode_head', 'all'}
    # Convolutions 3x3 at strides 4, 8, 16 twice and 32 three times, each behind the next upsampling; then the classes.
    pixels = {stride: (256 // stride)**2 for stride in (4, 8, 16, 32)}
    convs = pixels[4] + pixels[8] + (pixels[16] + pixels[8]) + (pixels[32] + pixels[16] + pixels[8])
    expected = (convs * 16 * 16 * 9 + pixels[4] * 16 * 4) / 1e9
    assert table['decode_head'][1] == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize('library, name, parts', [
    ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py', {'backbone', 'neck', 'bbox_head', 'all'}),
    ('mmdet', 'detr/detr_r18_8xb2-500e_coco.py',
     {'backbone', 'neck', 'encoder', 'decoder', 'bbox_head', 'query_embedding', 'all'}),
    ('mmseg', 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
     {'backbone', 'decode_head', 'auxiliary_head', 'all'}),
    ('mmpretrain', 'mobilenet_v2/mobilenet-v2_8xb32_in1k.py', {'backbone', 'head', 'all'}),
], ids=lambda value: value if isinstance(value, str) else '')
def test_configs_of_the_libraries(counts, library, name, parts):
    table = counts(shipped_config(library, name), '--shape', 64, 64)
    assert set(table) == parts
    for part in parts - {'auxiliary_head', 'query_embedding', 'neck', 'head'}:
        assert table[part][1] > 0, part
    # It learns, and is no part of inference; an embedding is looked up.
    assert all(table[part][1] == 0 for part in parts & {'auxiliary_head', 'query_embedding'})


def test_layers(counts, tmp_path, tiny_arch):
    table = counts(write_config('classifier', tmp_path / 'c.py', tiny_arch), '--shape', 64, 64, '--by-layer')
    assert table['backbone.downsample_layers.0.conv'] == (0.0008, 0.0002)  # 16 * 48 weights at 16 * 16 pixels
    assert table['head.layers.0.fc'][0] == pytest.approx((128 * 24) / 1e6, abs=1e-4)
    assert 'backbone.stages.3.0.token_mixer' in table


@pytest.mark.parametrize('content, options, message', [
    (None, (), "config 'missing.py' does not exist"),
    ('model = dict(type="ImageClassifier")', (), 'the config has no default_scope'),
    ('default_scope = "mmdet"', (), 'the config has no model'),
    ('', ('--shape', 0, 4), 'argument --shape: must be a number of at least 1, got 0'),
])
def test_wrong_usage(monkeypatch, capsys, tmp_path, content, options, message):
    config = 'missing.py'
    if content is not None:
        config = tmp_path / 'config.py'
        config.write_text(content)
    assert run_main(monkeypatch, TOOL, config, *options) == 2
    assert message in capsys.readouterr().err


def test_nothing_to_merge(monkeypatch, capsys):
    config = shipped_config('mmpretrain', 'mobilenet_v2/mobilenet-v2_8xb32_in1k.py')
    assert run_main(monkeypatch, TOOL, config, '--deploy') == 2
    assert 'ImageClassifier cannot be merged: none of its modules has switch_to_deploy()' in capsys.readouterr().err


@pytest.mark.slow
def test_detectors_of_the_paper_against_mmengines_counter(counts):
    """By mmengine's counter, which adds norms: ResNet-50 259.8, S 230.8, M 314.3, L 423.1."""
    shape = ('--shape', 800, 1280)
    r50 = counts(shipped_config('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'), *shape)['all']
    assert r50 == (44.40, pytest.approx(259.8, rel=3e-3))
    for arch, params, expected in (('s', 46.99, 230.8), ('m', 79.18, 314.3), ('l', 122.07, 423.1)):
        config = ROOT / 'configs' / 'mask_rcnn' / f'partialnet_{arch}_1x.py'
        assert counts(config, *shape, '--deploy')['all'][1] == pytest.approx(expected, rel=3e-3)
        assert counts(config, *shape)['all'][0] == params
