# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""ONNX files of single-stage detectors find what mmdet finds."""
import pytest
import torch

from partialnet_mm.deploy.onnx_export import session_of, whole_to_onnx
from partialnet_mm.deploy.whole_model import whole_model
from tests.helpers.detections import ARCH, build_detector, compare, detector_config, noise, predictions, with_threshold

pytest.importorskip('mmdet')

SMALL_HEAD = dict(num_classes=4, in_channels=32, feat_channels=32, stacked_convs=1)
#: Config, options of the head, layers of its logits.
HEADS = {
    'RetinaNet': ('configs/retinanet/retinanet_partialnet_s_1x.py', SMALL_HEAD, ['retina_cls']),
    'RetinaNet, softmax': ('configs/retinanet/retinanet_partialnet_s_1x.py', dict(
        SMALL_HEAD, loss_cls=dict(type='CrossEntropyLoss', _delete_=True)), ['retina_cls']),
    'ATSS': ('configs/atss/atss_partialnet_s_1x.py', SMALL_HEAD, ['atss_cls']),
    'RTMDet': ('configs/rtmdet/rtmdet_partialnet_s_custom.py', SMALL_HEAD, ['rtm_cls']),
    # Boxes may have negative widths.
    'RTMDet without exp': ('configs/rtmdet/rtmdet_partialnet_t0_custom.py', SMALL_HEAD, ['rtm_cls']),
    'FCOS': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', SMALL_HEAD, ['conv_cls']),
    'GFL': ('gfl/gfl_r50_fpn_1x_coco.py', SMALL_HEAD, ['gfl_cls']),
    'YOLOX': ('yolox/yolox_tiny_8xb8-300e_coco.py', SMALL_HEAD, ['multi_level_conv_cls', 'multi_level_conv_obj']),
}
FAST = ('RetinaNet', 'RTMDet without exp')


def small_detector(kind, **test_cfg):
    name, head, logits = HEADS[kind]
    cfg = detector_config(name, ARCH)
    cfg.model.neck.out_channels = 32
    cfg.model.bbox_head.update(head)
    if '_delete_' in cfg.model.bbox_head.loss_cls:
        cfg.model.bbox_head.loss_cls = dict(type='CrossEntropyLoss')
    cfg.model.test_cfg.update(test_cfg)
    return build_detector(cfg, logits)


@pytest.mark.parametrize('kind', [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow)
                                  for kind in HEADS])
def test_finds_what_mmdet_finds(kind):
    """In batches and images of several sizes, one without any object and one with as many as there may be."""
    model = small_detector(kind)
    file = whole_to_onnx(whole_model(model))
    images = [noise(1, 160, 224, seed) for seed in range(4)]
    best = [float(predictions(model, image)[0].scores.max()) for image in images]
    empty = best.index(min(best))
    model.bbox_head.test_cfg.score_thr = min(best) + 1e-4
    numbers = compare(session_of(with_threshold(file, min(best) + 1e-4)), model, torch.cat(images))
    assert [number == 0 for number in numbers] == [i == empty for i in range(4)]

    model.bbox_head.test_cfg.score_thr = 0.01
    session = session_of(with_threshold(file, 0.01))
    sizes = [(160, 224), (97, 150), (33, 70), (320, 192)]
    numbers = [number for i, (height, width) in enumerate(sizes)
               for number in compare(session, model, noise(i + 1, height, width, i))]
    assert max(numbers) >= 100 and max(numbers) == model.bbox_head.test_cfg.get('max_per_img', max(numbers))
