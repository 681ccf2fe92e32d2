# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""ONNX files of detectors with a deformable transformer find what mmdet finds."""
import pytest

from partialnet_mm.deploy import comparison
from partialnet_mm.deploy.onnx_export import whole_to_onnx
from partialnet_mm.deploy.whole_model import min_size, whole_model
from partialnet_mm.models import merge_model
from tests.helpers.detections import ARCH, build_detector, compare, detector_config, finder, noise, predictions
from tests.helpers.libraries import ROOT, build_model

pytest.importorskip('mmdet')

DINO = 'configs/dino/dino_partialnet_s_12e.py'
DEFORMABLE = 'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'


def small_config(name, divisor=1):
    cfg = detector_config(name, ARCH)
    model = cfg.model
    model.data_preprocessor.pad_size_divisor = divisor
    model.update(num_queries=50, test_cfg=dict(max_per_img=40))
    model.encoder.num_layers, model.decoder.num_layers = 1, 2
    for coder in (model.encoder, model.decoder):
        coder.layer_cfg.ffn_cfg.feedforward_channels = 32
    return cfg


@pytest.mark.parametrize('name, divisor, onnx_file', [
    (DINO, 32, False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (DINO, 1, False), (DEFORMABLE, 1, False), (DINO, 1, True), (DINO, 32, True), (DEFORMABLE, 32, True)))])
def test_finds_what_mmdet_finds(name, divisor, onnx_file):
    """In batches and images of several sizes; with a divisor, the padding is masked."""
    model = build_detector(small_config(name, divisor), ['cls_branches'])
    whole = whole_model(model)
    assert min_size(whole) == 128  # two pixels of the coarsest map
    find = finder(whole, onnx_file)(0.)
    for i, (height, width) in enumerate([(160, 224), (129, 150), (128, 130), (256, 200)]):
        assert compare(find, model, noise(i + 1, height, width, i)) == [40] * (i + 1)


def test_classes_by_softmax():
    """The best class of each query, as the head does with a softmax over classes and background."""
    cfg = small_config(DINO)
    cfg.model.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
    model = build_detector(cfg, ['cls_branches'])
    assert compare(whole_model(model), model, noise(2, 97, 150)) == [40, 40]
    assert all(found.labels.unique().numel() > 1 for found in predictions(model, noise(2, 97, 150)))


@pytest.mark.parametrize('name, message', [
    ('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', 'DeformableDETR with as_two_stage=False'),
    ('ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py', 'DDQDETRHead .* has a predict_by_feat, forward of its own'),
    ('detr/detr_r50_8xb2-150e_coco.py', 'DETRHead cannot be expressed'),
])
def test_refuses_what_it_does_not_express(name, message):
    model = build_model(detector_config(name, ARCH), init=False)
    with pytest.raises(ValueError, match=message):
        whole_model(model)


@pytest.mark.slow
@pytest.mark.parametrize('name', [
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / 'configs' / 'dino').glob('*.py'))),
    'dino/dino-4scale_r50_8xb2-12e_coco.py'])
def test_whole_configs(name):
    """Among 900 queries, some of nearly the same score change places, and their content with them."""
    model = build_detector(detector_config(name), ['cls_branches'])
    merge_model(model)
    whole = whole_model(model)
    sizes = [(1, 256, min_size(whole)), (2, 240, 320)]
    assert all(found.equal for found in comparison.compare(whole_to_onnx(whole), whole, model, sizes))
