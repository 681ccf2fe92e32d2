# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""tools/deployment/quantize_onnx.py: INT8 files with the metrics, the latency and the layers that cost most."""
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from partialnet_mm.analysis.build import build_model
from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import run_main

pytest.importorskip('mmpretrain')
onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
TOOL, EXPORT = 'tools/deployment/quantize_onnx.py', 'tools/deployment/export_onnx.py'
CONFIG = """
_base_ = '{root}/configs/cifar10/partialnet_t0_cifar10.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='GELU'))),
    head=dict(num_classes=3, in_channels=128, mid_channels=[24]))
data_preprocessor = dict(num_classes=3)
train_dataloader = dict(dataset=dict(data_root='{data}'))
val_dataloader = dict(dataset=dict(data_root='{data}'))
test_dataloader = dict(dataset=dict(data_root='{data}'))
val_evaluator = dict(topk=(1, ))
test_evaluator = dict(topk=(1, ))
"""


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Folder with a classifier of stripes by direction, its config and its ONNX file; the weights are random."""
    folder = tmp_path_factory.mktemp('stripes')
    rng = np.random.default_rng(0)
    for split, count in (('train', 6), ('test', 8)):
        for name, stripes in dict(a=(1, 0), b=(0, 1), c=(1, 1)).items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                phase = np.arange(32)[:, None] * stripes[0] + np.arange(32) * stripes[1] + rng.integers(9)
                pixels = (phase[..., None] // 3 % 2 * rng.integers(99, 200, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f'{index}.png')
    (folder / 'config.py').write_text(CONFIG.format(root=ROOT, data=folder))
    torch.manual_seed(0)
    model = build_model(Config.fromfile(folder / 'config.py'))
    torch.save(dict(meta={}, state_dict=model.state_dict()), folder / 'model.pth')
    with pytest.MonkeyPatch.context() as patch:
        assert run_main(patch, EXPORT, folder / 'config.py', folder / 'model.pth', '--output', folder / 'model.onnx',
                        '--no-check') == 0
    return folder


def quantize(monkeypatch, folder, *options):
    return run_main(monkeypatch, TOOL, folder / 'model.onnx', '--config', folder / 'config.py', '--output',
                    folder / 'int8.onnx', '--rounds', '3', *options)


def probabilities(path, images):
    return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider']).run(None, dict(images=images))[0]


def test_file_is_close_and_all_is_reported(exported, monkeypatch, capsys):
    assert quantize(monkeypatch, exported, '--images', '5', '--worst', '3') == 0
    output = capsys.readouterr().out
    metric = re.search(r'\| accuracy/top1 \| ([\d.]+) \| ([\d.]+) \| ([-+][\d.]+) \|', output)
    float32, int8, difference = map(float, metric.groups())
    assert difference == pytest.approx(int8 - float32) and abs(difference) <= 100 / 24 * 3
    assert re.search(r'64 x 64 on one thread, INT8 over float32: \d\.\d{3} \(', output)
    layers = re.findall(r'^\| (\S*stages\S+|\S*head\S+|\S*downsample\S+) \| (-[\d.]+) \|$', output, re.M)
    errors = [float(error) for _, error in layers]
    assert len(layers) == 3 and errors == sorted(errors, reverse=True)
    assert re.search(r'(\d+) of \1 layers in INT8, calibrated with 5 images', output)

    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    given, wanted = (probabilities(exported / name, images) for name in ('int8.onnx', 'model.onnx'))
    np.testing.assert_allclose(given, wanted, atol=.05)
    assert not np.array_equal(given, wanted)
    before, after = (onnx.load(exported / name).metadata_props for name in ('model.onnx', 'int8.onnx'))
    assert list(after) == list(before) and len(before) > 5

    assert quantize(monkeypatch, exported) == 2
    assert 'int8.onnx' in capsys.readouterr().err
    name = layers[0][0]
    assert quantize(monkeypatch, exported, '--images', '2', '--float-layers', name, '--force', '--split', 'test') == 0
    output = capsys.readouterr().out
    assert f'| {name} |' not in output
    total = int(re.search(r'(\d+) layers in INT8', output)[1])
    assert f'{total - 1} of {total} layers in INT8, calibrated with 2 images' in output


@pytest.mark.parametrize('options, message', [
    (('--float-layers', 'stages.9'), "no layer 'stages.9'"),
    (('--cfg-options', 'train_dataloader=None'), 'has no train_dataloader'),
    (('--images', '0'), 'must be a number of at least 1'),
])
def test_mistakes_are_named(exported, monkeypatch, capsys, options, message):
    assert quantize(monkeypatch, exported, '--force', *options) == 2
    assert message in capsys.readouterr().err


def test_files_that_cannot_be_quantized_are_refused(exported, monkeypatch, capsys, tmp_path):
    broken = tmp_path / 'broken.onnx'
    broken.write_bytes(b'no model')
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node('QuantizeLinear', ['images', 'scale'], ['q'])], 'graph',
        [onnx.helper.make_tensor_value_info('images', onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info('q', onnx.TensorProto.UINT8, [1])],
        [onnx.numpy_helper.from_array(np.float32(1), 'scale')])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 17)]), tmp_path / 'int8.onnx')
    for path, message in ((broken, 'no valid ONNX file'), (tmp_path / 'int8.onnx', 'quantized already'),
                          (tmp_path / 'nothing.onnx', 'does not exist')):
        assert run_main(monkeypatch, TOOL, path, '--config', exported / 'config.py', '--output',
                        tmp_path / 'out.onnx') == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'out.onnx').exists()
