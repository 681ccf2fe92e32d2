# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""tools/deployment/export_onnx.py and test_onnx.py: ONNX files of any library's models, right at any size."""
import importlib.util
import json

import numpy as np
import onnx
import pytest
import torch
from mmengine.config import Config
from torch import nn

from partialnet_mm import swap_backbone
from partialnet_mm.analysis.build import build_model
from partialnet_mm.deploy import comparison, onnx_export
from partialnet_mm.deploy.onnx_export import differences, to_onnx, whole_to_onnx
from partialnet_mm.deploy.whole_model import as_host_batch, whole_model
from partialnet_mm.models import merge_model
from tests.helpers.coco_data import NAMES, write_coco_data
from tests.helpers.libraries import ROOT, shipped_config
from tests.helpers.tiny_models import CLASSES, write_checkpoint, write_config
from tests.helpers.tool_scripts import run_main

onnxruntime = pytest.importorskip('onnxruntime')
TOOL = 'tools/deployment/export_onnx.py'
ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='GELU'))
SHAPES = ((1, 3, 64, 96), (3, 3, 225, 193), (2, 3, 33, 800))
#: (B, H, W) of whole models.
SIZES = ((1, 64, 96), (3, 225, 193), (2, 33, 200), (1, 128, 128), (2, 97, 32))


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


def random_images(seed, *shape):
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@torch.no_grad()
def host_test(model, images):
    return model.test_step(as_host_batch(images, model.data_preprocessor))


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
    assert said.count('largest difference') == 3 and 'merged, images -> probabilities' in said
    assert [output.name for output in session.get_outputs()] == ['probabilities']
    for seed, shape in enumerate(SIZES):
        images = random_images(seed, *shape)
        found, = session.run(None, {'images': images.numpy()})
        wanted = torch.stack([sample.pred_score for sample in host_test(model, images)]).numpy()
        assert np.abs(found - wanted).max() < 1e-5
    metadata = metadata_of(session)
    assert np.allclose(json.loads(metadata['mean']), [123.675, 116.28, 103.53])
    assert np.allclose(json.loads(metadata['std']), [58.395, 57.12, 57.375])
    assert metadata['channel_order'] == 'RGB' and metadata['form'] == 'merged'
    assert metadata['task'] == 'classification' and json.loads(metadata['classes']) == list(CLASSES['classifier'])
    assert [step['type'] for step in json.loads(metadata['preprocessing'])] == ['resize_edge', 'center_crop']
    assert metadata['config'] == 'classifier.py' and metadata['checkpoint'] == 'classifier.pth'


def test_detector_of_masks(export, tmp_path):
    """A hundred objects per image at five sizes; and none, where no score is above the threshold."""
    model, session = export('detector', '--no-check', '--cfg-options', *(f'model.test_cfg.{name}' for name in (
        'rpn.nms_pre=1000', 'rpn.max_per_img=200', 'rcnn.max_per_img=100', 'rcnn.score_thr=0.')))
    names = [output.name for output in session.get_outputs()]
    assert names == ['boxes', 'scores', 'labels', 'masks']
    model.rpn_head.test_cfg.update(nms_pre=1000, max_per_img=200)
    model.roi_head.test_cfg.update(score_thr=0., max_per_img=100)
    most = 0
    for seed, shape in enumerate(SIZES):
        images = random_images(seed, *shape)
        found = dict(zip(names, session.run(None, {'images': images.numpy()})))
        assert found['labels'].dtype == np.int64 and found['masks'].shape == (*found['labels'].shape, 28, 28)
        for index, sample in enumerate(host_test(model, images)):
            wanted = sample.pred_instances
            number = len(wanted)
            unused = found['labels'][index] == -1
            assert not found['scores'][index][unused].any() and abs((~unused).sum() - number) <= 3
            # Rounding may decide about one of two boxes that overlap by just the threshold of the suppression.
            boxes = np.abs(found['boxes'][index] - wanted.bboxes.numpy()[:, None]).max(2) < 0.05
            scores = np.abs(found['scores'][index] - wanted.scores.numpy()[:, None]) < 1e-4
            same = boxes & scores & (found['labels'][index] == wanted.labels.numpy()[:, None])
            assert same.any(1).mean() > 0.95 and same.any(0)[:number].mean() > 0.95
            most = max(most, number)
    assert most == 100

    file = onnx.load(tmp_path / 'out.onnx')
    threshold, = (value for value in file.graph.initializer if value.name.endswith('score_threshold'))
    threshold.raw_data = np.float32(1).tobytes()
    empty = onnxruntime.InferenceSession(file.SerializeToString()).run(None, {'images': images.numpy()})
    assert [values.shape for values in empty] == [(2, 0, 4), (2, 0), (2, 0), (2, 0, 28, 28)]


def test_metrics_of_a_file_are_those_of_pytorch(export, monkeypatch, tmp_path, capsys):
    export('detector', '--no-check')
    data = write_coco_data(tmp_path, dict(val=2))
    file = data / 'annotations/instances_val.json'
    capsys.readouterr()

    def run(classes, *options):
        return run_main(
            monkeypatch, 'tools/deployment/test_onnx.py', tmp_path / 'out.onnx', tmp_path / 'detector.py', *options,
            '--images', 1, '--cfg-options', f'test_dataloader.dataset.data_root={data}',
            'test_dataloader.dataset.data_prefix.img=images/', f'test_dataloader.dataset.ann_file={file}',
            f'test_dataloader.dataset.metainfo.classes={classes}', f'test_evaluator.ann_file={file}')

    assert run(list(NAMES), '--checkpoint', tmp_path / 'detector.pth') == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith('coco/')]
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} < {line[0] for line in lines}
    assert all(abs(float(line[-1])) <= 0.002 for line in lines)
    first, second, third = CLASSES['detector']
    for classes, message in (([second, first, third], f'class {first!r} has label 0 in the model and 1 in the test'),
                             ([first], 'the model has 3 classes and the test data 1')):
        assert run(classes, '--skip-preflight') == 2
        assert message in capsys.readouterr().err


def test_segmentor(export, capsys):
    model, session = export('segmentor')
    assert capsys.readouterr().out.count('largest difference') == 3
    for seed, shape in enumerate(SIZES):
        images = random_images(seed, *shape)
        class_map, = session.run(None, {'images': images.numpy()})
        assert class_map.dtype == np.uint8 and class_map.shape == shape
        wanted = torch.stack([sample.pred_sem_seg.data[0] for sample in host_test(model, images)]).numpy()
        assert (class_map == wanted).mean() > 0.999 and len(np.unique(wanted)) > 1
    metadata = metadata_of(session)
    assert metadata['task'] == 'segmentation' and json.loads(metadata['classes']) == list(CLASSES['segmentor'])
    assert metadata['channel_order'] == 'BGR' and json.loads(metadata['min_size']) == 32


@pytest.mark.slow
def test_backbone_of_a_detector(export):
    model, session = export('detector', '--backbone', '--no-deploy', '--shape', 65, 64)
    assert [output.name for output in session.get_outputs()] == [f'stage{i}' for i in range(1, 5)]
    for shape in SHAPES:
        assert_equal(session, model.backbone, shape)
    metadata = metadata_of(session)
    assert json.loads(metadata['strides']) == [4, 8, 16, 32]
    assert json.loads(metadata['channels']) == [16, 32, 64, 128]
    assert metadata['channel_order'] == 'RGB' and metadata['form'] == 'trainable'
    assert json.loads(metadata['input_shape']) == ['batch', 3, 'height', 'width'] and 'classes' not in metadata


def test_one_size(export, capsys):
    model, session = export('segmentor', '--backbone', '--static', '--shape', 32, 50)
    assert session.get_inputs()[0].shape == [1, 3, 32, 50]
    assert capsys.readouterr().out.count('largest difference') == 1
    assert_equal(session, model.backbone, (1, 3, 32, 50))
    metadata = metadata_of(session)
    assert metadata['channel_order'] == 'BGR' and json.loads(metadata['mean']) == [0]


def test_backbone_of_a_classifier(export, capsys):
    model, session = export('classifier', '--backbone', '--static', '--shape', 64, 64, '--no-check')
    assert 'largest difference' not in capsys.readouterr().out
    assert_equal(session, model.backbone, (1, 3, 64, 64))


def test_random_weights_with_sync_bn(monkeypatch, tmp_path):
    config = write_config('classifier', tmp_path / 'config.py', ARCH)
    assert run_main(monkeypatch, TOOL, config, '--output', tmp_path / 'out.onnx', '--backbone', '--static', '--shape',
                    64, 64, '--cfg-options', 'model.backbone.norm_cfg.type=SyncBN') == 0


@pytest.mark.parametrize('options, message', [
    (['--backbone', '--shape', 31, 64], '--shape must be at least 32 32'),
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


def test_backbone_of_a_config_without_partialnet(monkeypatch, tmp_path, capsys):
    pytest.importorskip('mmpretrain')
    config = ROOT / 'configs' / 'patconv' / 'resnet50_cifar10.py'
    assert run_main(monkeypatch, TOOL, config, '--backbone', '--output', tmp_path / 'out.onnx') == 2
    assert 'nothing was written: the model of the config (ImageClassifier) holds no PartialNet' in (
        capsys.readouterr().err)


def test_detector_that_cannot_be_expressed(monkeypatch, tmp_path, capsys):
    config = write_config('detector', tmp_path / 'config.py', ARCH)
    assert run_main(monkeypatch, TOOL, config, '--output', tmp_path / 'out.onnx', '--cfg-options',
                    'model.test_cfg.rcnn.nms.type=soft_nms') == 2
    assert "nothing was written: test_cfg.nms.type is 'soft_nms'" in ' '.join(capsys.readouterr().err.split())
    assert not (tmp_path / 'out.onnx').exists()


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
    monkeypatch.setattr(onnx_export, 'relative_difference', lambda outputs, wanted: float('nan'))
    assert run_main(monkeypatch, TOOL, config, '--output', tmp_path / 'out.onnx', '--backbone', '--static', '--shape',
                    64, 64) == 1
    assert 'nothing was written: onnxruntime differs from PyTorch' in capsys.readouterr().err
    assert not (tmp_path / 'out.onnx').exists()


@pytest.fixture(params=['detector', 'segmentor'])
def other_models(request, tmp_path, randomize_norms):
    """Two models of a kind that differ in their last layer, and the ONNX model of the first."""
    model = write_checkpoint(request.param, write_config(request.param, tmp_path / 'config.py', ARCH),
                             tmp_path / 'model.pth', randomize_norms)
    whole = whole_model(model)
    return request.param, model, whole, whole_to_onnx(whole)


def test_comparison_finds_what_differs(other_models):
    kind, model, whole, exported = other_models
    shapes = [(2, 64, 96)]
    (equal, ) = comparison.compare(exported, whole, model, shapes)
    assert equal.equal, equal.text
    with torch.no_grad():
        if kind == 'segmentor':
            model.decode_head.conv_seg.bias[0] += 0.1
        else:
            model.roi_head.bbox_head.fc_reg.bias += 0.5
    (other, ) = comparison.compare(exported, whole, model, shapes)
    assert not other.equal, other.text


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


def swapped(package, name):
    """A config that a library ships, with PartialNet-T0 for its backbone."""
    return swap_backbone(Config.fromfile(shipped_config(package, name)), 't0')


CONFIGS = ('mask_rcnn/partialnet_t0_1x', 'mask_rcnn/resnet50_1x', 'cascade_mask_rcnn/cascade_mask_rcnn_partialnet_s_1x',
           'faster_rcnn/faster_rcnn_partialnet_t0_custom', 'semantic_fpn/semantic_fpn_partialnet_s_80k_ade20k',
           'upernet/upernet_partialnet_s_160k_ade20k', 'upernet/upernet_partialnet_s_80k_cityscapes',
           'pretrain/partialnet_t2_in1k', 'cifar10/fasternet_t0_cifar10', 'patconv/mobilenet_v2_patconv_cifar10')
SHIPPED = (('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'),
           ('mmdet', 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'),
           ('mmseg', 'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py'),
           ('mmseg', 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'))


@pytest.mark.slow
@pytest.mark.parametrize('config', [*CONFIGS, *SHIPPED], ids=str)
def test_full_config(config, randomize_norms):
    cfg = swapped(*config) if isinstance(config, tuple) else Config.fromfile(ROOT / 'configs' / f'{config}.py')
    torch.manual_seed(0)
    model = randomize_norms(build_model(cfg)).eval()
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.num_batches_tracked.fill_(1)
    if any(hasattr(module, 'switch_to_deploy') for module in model.modules()):
        merge_model(model)
    whole = whole_model(model)
    for found in comparison.compare(whole_to_onnx(whole), whole, model, [(1, 160, 224), (2, 129, 97)]):
        assert found.equal, found.text
