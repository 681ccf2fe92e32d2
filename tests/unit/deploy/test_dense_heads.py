# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""ONNX files of single-stage detectors find what mmdet finds."""
import pytest
import torch

from partialnet_mm.deploy.whole_model import whole_model
from partialnet_mm.models import merge_model
from tests.helpers.detections import ARCH, build_detector, compare, detector_config, finder, noise, predictions
from tests.helpers.libraries import ROOT, build_model

pytest.importorskip('mmdet')

SMALL_HEAD = dict(num_classes=4, in_channels=32, feat_channels=32, stacked_convs=1)
RETINANET = 'configs/retinanet/retinanet_partialnet_s_1x.py'
#: Config, options of the head, layers of its logits, and of its boxes where random ones would grow without limit.
HEADS = {
    'RetinaNet': (RETINANET, SMALL_HEAD, ['retina_cls']),
    'RetinaNet, softmax': (RETINANET, dict(
        SMALL_HEAD, loss_cls=dict(type='CrossEntropyLoss')), ['retina_cls']),
    'ATSS': ('configs/atss/atss_partialnet_s_1x.py', SMALL_HEAD, ['atss_cls']),
    'RTMDet': ('configs/rtmdet/rtmdet_partialnet_s_custom.py', SMALL_HEAD, ['rtm_cls']),
    # Boxes may have negative widths.
    'RTMDet without exp': ('configs/rtmdet/rtmdet_partialnet_t0_custom.py', SMALL_HEAD, ['rtm_cls']),
    'FCOS': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', SMALL_HEAD, ['conv_cls']),
    'GFL': ('gfl/gfl_r50_fpn_1x_coco.py', SMALL_HEAD, ['gfl_cls']),
    'YOLOX': ('yolox/yolox_tiny_8xb8-300e_coco.py', SMALL_HEAD, ['multi_level_conv_cls', 'multi_level_conv_obj'],
              ['multi_level_conv_reg']),
}
FAST = ('RetinaNet', 'ATSS', 'RTMDet without exp', 'GFL', 'YOLOX')


def small_detector(kind, **test_cfg):
    name, head, *layers = HEADS[kind]
    cfg = detector_config(name, ARCH)
    cfg.model.neck.out_channels = 32
    if 'loss_cls' in head:
        cfg.model.bbox_head.pop('loss_cls')
    cfg.model.bbox_head.update(head)
    cfg.model.test_cfg.update(test_cfg)
    return build_detector(cfg, *layers)


def dividing_threshold(model, images):
    """A threshold of scores above which some of the images have objects and some have none."""
    low, high = 0., 1.
    while True:
        model.bbox_head.test_cfg.score_thr = (low + high) / 2
        some = {len(found) > 0 for found in predictions(model, images)}
        if len(some) == 2:
            return (low + high) / 2
        low, high = ((low + high) / 2, high) if some == {True} else (low, (low + high) / 2)


@pytest.mark.parametrize('kind, onnx_file', [
    pytest.param(kind, onnx_file, marks=pytest.mark.slow if onnx_file or kind not in FAST else ())
    for onnx_file in (False, True) for kind in HEADS])
def test_finds_what_mmdet_finds(kind, onnx_file):
    """In batches and images of several sizes, one without any object and one with as many as there may be."""
    model = small_detector(kind)
    find = finder(whole_model(model), onnx_file)
    images = torch.cat([noise(1, 160, 224, seed) for seed in range(4)])
    threshold = model.bbox_head.test_cfg.score_thr = dividing_threshold(model, images)
    numbers = compare(find(threshold), model, images)
    assert min(numbers) == 0 < max(numbers)
    assert compare(find(threshold), model, images[numbers.index(0)][None]) == [0]

    model.bbox_head.test_cfg.score_thr = 0.01
    sizes = [(160, 224), (97, 150), (33, 70), (320, 192)]
    numbers = [number for i, (height, width) in enumerate(sizes)
               for number in compare(find(0.01), model, noise(i + 1, height, width, i))]
    assert max(numbers) >= 100 and max(numbers) == model.bbox_head.test_cfg.get('max_per_img', max(numbers))


def test_larger_images_than_the_traced_one():
    """A file keeps as many candidates of each level as the host, and not as many as the traced image has."""
    model = small_detector('RetinaNet', max_per_img=9999, min_bbox_size=-1,
                           nms=dict(type='nms', iou_threshold=1.))
    images = noise(1, 320, 416)
    levels = [level.numel() for level in model.bbox_head(model.extract_feat(torch.zeros(1, 3, 320, 416)))[0]]
    assert levels[3] > 1000 > levels[3] * 160 * 288 / (320 * 416)
    assert finder(whole_model(model), True)(0.)(images)[0].shape[1] == sum(min(level, 1000) for level in levels)


@pytest.mark.parametrize('test_cfg', [dict(min_bbox_size=40), dict(nms_pre=7), dict(max_per_img=3),
                                      dict(nms=dict(type='nms', iou_threshold=0.2, class_agnostic=True))], ids=str)
def test_options_of_the_test(test_cfg):
    model = small_detector('RetinaNet', **test_cfg)
    whole = whole_model(model)
    images = noise(2, 160, 224)
    assert min(compare(whole, model, images)) > 0
    changed = [found.scores.sum() for found in predictions(model, images)]
    model.bbox_head.test_cfg.update(min_bbox_size=0, nms_pre=1000, max_per_img=100,
                                    nms=dict(type='nms', iou_threshold=0.5))
    assert [found.scores.sum() for found in predictions(model, images)] != changed


@pytest.mark.parametrize('name, changes, message', [
    ('rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', {}, 'RTMDetInsSepBNHead .* has a .*_predict_by_feat_single'),
    ('tood/tood_r50_fpn_1x_coco.py', {}, 'TOODHead .* has a _predict_by_feat_single of its own'),
    ('fsaf/fsaf_r50_fpn_1x_coco.py', {}, 'TBLRBBoxCoder'),
    ('vfnet/vfnet_r50_fpn_1x_coco.py', {}, r'^DeformConv2d \(bbox_head\.vfnet_reg_refine_dconv\) cannot be expressed'),
    (RETINANET, dict(nms_pre=0), 'test_cfg.nms_pre of RetinaHead is 0'),
    (RETINANET, dict(max_per_img=-1), 'test_cfg.max_per_img of RetinaHead is -1'),
    (RETINANET, dict(nms=dict(type='soft_nms')), "test_cfg.nms.type is 'soft_nms'"),
])
def test_refuses_what_it_does_not_express(name, changes, message):
    cfg = detector_config(name, ARCH)
    cfg.model.test_cfg.update(changes)
    model = build_model(cfg, init=False)
    with pytest.raises(ValueError, match=message):
        whole_model(model)


@pytest.mark.parametrize('kind, padding, divisor', [('RTMDet', 1, 32), ('RTMDet', 32, 1), ('RetinaNet', 1, 1)])
def test_sizes_that_the_host_takes(kind, padding, divisor):
    """RTMDet's neck adds maps of neighbouring strides, and fails if one has an odd number of pixels."""
    model = small_detector(kind)
    model.data_preprocessor.pad_size_divisor = padding
    network = whole_model(model).network
    assert (network.min_size, network.divisor) == (1, divisor)


@pytest.mark.slow
@pytest.mark.parametrize('name, layers', [
    *((str(path.relative_to(ROOT)), [[layer]]) for folder, layer in (
        ('retinanet', 'retina_cls'), ('atss', 'atss_cls'), ('rtmdet', 'rtm_cls'))
      for path in sorted((ROOT / 'configs' / folder).glob('*.py'))),
    ('retinanet/retinanet_r50_fpn_1x_coco.py', [['retina_cls']]),
    ('atss/atss_r50_fpn_1x_coco.py', [['atss_cls']]),
    ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', [['conv_cls']]),
    ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', [['rtm_cls']]),
    ('yolox/yolox_s_8xb8-300e_coco.py', [['multi_level_conv_cls', 'multi_level_conv_obj'], ['multi_level_conv_reg']]),
])
def test_whole_configs(name, layers):
    model = build_detector(detector_config(name), *layers)
    merge_model(model)
    find = finder(whole_model(model), True)(model.bbox_head.test_cfg.score_thr)
    assert min(compare(find, model, noise(1, 256, 192))) > 0
    assert min(compare(find, model, noise(2, 224, 320))) > 0
