# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""swap_backbone on the configs that mmdet, mmseg and mmpretrain ship: each trains and predicts afterwards."""
import logging
import re
import sys
from collections import Counter

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from partialnet_mm import PartialNet, swap_backbone
from partialnet_mm.swap_backbone import FeatureMap, measure_backbone
from tests.helpers.batches import loss_of, predictions_of, random_batch, shrink
from tests.helpers.libraries import ROOT, build_model, parameters_without_gradient, shipped_config

#: Widths 16, 32, 64 and 128; five blocks.
ARCH = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=2, act_cfg=dict(type='ReLU'))
CHANNELS = (16, 32, 64, 128)
ALL, LAST = (0, 1, 2, 3), (3, )

#: Library, config, stages that are returned.
SWAPPED = [
    ('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', ALL),
    ('mmdet', 'mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py', ALL),
    ('mmdet', 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', ALL),
    ('mmdet', 'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py', ALL),
    ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py', (1, 2, 3)),
    ('mmdet', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', (1, 2, 3)),
    ('mmdet', 'atss/atss_r50_fpn_1x_coco.py', (1, 2, 3)),
    ('mmdet', 'gfl/gfl_r50_fpn_1x_coco.py', (1, 2, 3)),
    ('mmdet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py', (1, 2, 3)),
    ('mmdet', 'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', (1, 2, 3)),
    ('mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py', (1, 2, 3)),
    ('mmdet', 'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', (1, 2, 3)),
    ('mmdet', 'yolof/yolof_r50-c5_8xb8-1x_coco.py', LAST),
    ('mmdet', 'detr/detr_r50_8xb2-150e_coco.py', LAST),
    ('mmdet', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', (1, 2, 3)),
    ('mmdet', 'dino/dino-4scale_r50_8xb2-12e_coco.py', (1, 2, 3)),
    ('mmdet', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', ALL),
    ('mmdet', 'solov2/solov2-light_r18_fpn_ms-3x_coco.py', ALL),
    ('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', (2, 3)),
    ('mmseg', 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', (2, 3)),
    ('mmseg', 'deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py', (0, 2, 3)),
    ('mmseg', 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', ALL),
    ('mmseg', 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', ALL),
    ('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', ALL),
    ('mmseg', 'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py', ALL),
    ('mmseg', 'ocrnet/ocrnet_hr18s_4xb2-80k_cityscapes-512x1024.py', ALL),
    ('mmseg', 'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py', (2, 3)),
    ('mmseg', 'encnet/encnet_r50-d8_4xb2-80k_cityscapes-512x1024.py', (2, 3)),
    ('mmpretrain', 'resnet/resnet18_8xb32_in1k.py', LAST),
    ('mmpretrain', 'convnext/convnext-tiny_32xb128_in1k.py', LAST),
    ('mmpretrain', 'mobilenet_v3/mobilenet-v3-small_8xb128_in1k.py', LAST),
    ('mmpretrain', 'hrnet/hrnet-w18_4xb32_in1k.py', ALL),
]
#: Further necks, heads and backbones, and models around a detector.
FURTHER = [
    ('mmdet', 'centernet/centernet_r18_8xb16-crop512-140e_coco.py', LAST),
    ('mmdet', 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', LAST),
    ('mmdet', 'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py', ALL),
    ('mmdet', 'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', ALL),
    ('mmdet', 'dyhead/atss_r50_fpn_dyhead_1x_coco.py', (1, 2, 3)),
    ('mmdet', 'efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py', (1, 2, 3)),
    ('mmdet', 'fpg/faster-rcnn_r50_fpg-chn128_crop640-50e_coco.py', ALL),
    ('mmdet', 'hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py', ALL),
    ('mmdet', 'htc/htc-without-semantic_r50_fpn_1x_coco.py', ALL),
    ('mmdet', 'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py', (1, 2, 3)),
    ('mmdet', 'pafpn/faster-rcnn_r50_pafpn_1x_coco.py', ALL),
    ('mmdet', 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', ALL),
    ('mmdet', 'pvt/retinanet_pvt-t_fpn_1x_coco.py', (1, 2, 3)),
    ('mmdet', 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', ALL),
    ('mmdet', 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', ALL),
    ('mmdet', 'vfnet/vfnet_r50_fpn_1x_coco.py', (1, 2, 3)),
    ('mmdet', 'yolact/yolact_r50_1xb8-55e_coco.py', (1, 2, 3)),
    ('mmseg', 'ann/ann_r50-d8_4xb2-80k_cityscapes-512x1024.py', (2, 3)),
    ('mmseg', 'deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py', (2, 3)),
    ('mmseg', 'hrnet/fcn_hr18s_4xb2-80k_cityscapes-512x1024.py', ALL),
    ('mmseg', 'mobilenet_v2/mobilenet-v2-d8_pspnet_4xb2-80k_cityscapes-512x1024.py', (2, 3)),
    ('mmseg', 'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py', (1, 2, 3)),
    ('mmseg', 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', ALL),
    ('mmseg', 'twins/twins_svt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512.py', ALL),
    ('mmpretrain', 'swin_transformer/swin-tiny_16xb64_in1k.py', LAST),
    ('mmpretrain', 'vision_transformer/vit-base-p16_64xb64_in1k.py', LAST),
]


def load(library: str, name: str) -> Config:
    return Config.fromfile(shipped_config(library, name))


@pytest.fixture
def logged(monkeypatch):
    """What a swap logs, as (text, level)."""
    lines = []
    # The function of the same name hides the module.
    monkeypatch.setattr(sys.modules['partialnet_mm.swap_backbone'], 'print_log',
                        lambda text, logger, level: lines.append((text, level)))
    return lines


def check_swapped(library: str, cfg: Config, stages: tuple[int, ...]) -> Config:
    """Swaps, and runs a forward, a loss, a backward and a prediction."""
    cfg = swap_backbone(cfg, ARCH)
    assert cfg.model.backbone.out_indices == stages
    shrink(cfg.model)
    model = build_model(cfg)
    assert type(model.backbone) is PartialNet
    has_norms = any(name.startswith('norm') for name, _ in model.backbone.named_parameters())
    assert has_norms == (library != 'mmpretrain')
    loss = loss_of(cfg, model, random_batch(cfg))
    assert torch.isfinite(loss)
    loss.backward()
    assert parameters_without_gradient(model.backbone) == []
    found = predictions_of(cfg, model, random_batch(cfg))
    field = dict(mmdet='pred_instances', mmseg='pred_sem_seg', mmpretrain='pred_score')[library]
    assert len(found) == 2 and all(field in sample for sample in found)
    return cfg


@pytest.mark.parametrize('library, name, stages', SWAPPED)
def test_shipped_config_trains_and_predicts(library, name, stages):
    check_swapped(library, load(library, name), stages)


@pytest.mark.slow
@pytest.mark.parametrize('library, name, stages', FURTHER)
def test_further_shipped_config_trains_and_predicts(library, name, stages):
    check_swapped(library, load(library, name), stages)


FASTER = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
RETINA = 'retinanet/retinanet_r18_fpn_1x_coco.py'


def test_the_given_config_and_the_random_state_do_not_change():
    cfg = load('mmdet', FASTER)
    before, state = cfg.to_dict(), torch.get_rng_state()
    swapped = swap_backbone(cfg, ARCH)
    assert cfg.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert swapped.model.backbone.type == 'PartialNet' and swapped.filename == cfg.filename


def test_all_that_changes_in_a_detector():
    """Every difference to the config, and no other."""
    swapped = swap_backbone(load('mmdet', RETINA), 's', checkpoint='s.pth', backbone=dict(drop_path_rate=0.1))
    expected = load('mmdet', RETINA)
    expected.model.backbone = dict(
        type='PartialNet', arch='s', out_indices=(1, 2, 3), out_norm=True, norm_cfg=dict(type='BN'), norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='s.pth', prefix='backbone.'), drop_path_rate=0.1)
    expected.model.neck.update(in_channels=[192, 384, 768], start_level=0)
    expected.custom_imports = dict(imports=['partialnet_mm'], allow_failed_imports=False)
    assert swapped.to_dict() == expected.to_dict()


def test_all_that_changes_in_a_segmentor():
    swapped = swap_backbone(load('mmseg', 'deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py'), 's')
    expected = load('mmseg', 'deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    expected.model.backbone = dict(
        type='PartialNet', arch='s', out_indices=(0, 2, 3), out_norm=True, norm_cfg=dict(type='SyncBN'))
    expected.model.decode_head.update(in_channels=768, in_index=2, c1_in_channels=96)
    expected.model.auxiliary_head.update(in_channels=384, in_index=1)
    del expected.model['pretrained']
    expected.custom_imports = dict(imports=['partialnet_mm'], allow_failed_imports=False)
    assert swapped.to_dict() == expected.to_dict()


def test_a_classifier_of_vectors_gets_a_pooling():
    cfg = swap_backbone(load('mmpretrain', 'convnext/convnext-tiny_32xb128_in1k.py'), 't2')
    assert cfg.model.neck == dict(type='GlobalAveragePooling')
    assert cfg.model.head.in_channels == 512 and cfg.model.backbone.out_norm is False
    cfg = load('mmpretrain', 'convnext/convnext-tiny_32xb128_in1k.py')
    cfg.model.neck = dict(type='LinearNeck', in_channels=768, out_channels=32)
    cfg.model.head.in_channels = 32
    cfg = swap_backbone(cfg, 't2')
    assert [(neck.type, neck.get('in_channels')) for neck in cfg.model.neck] == [
        ('GlobalAveragePooling', None), ('LinearNeck', 512)]
    assert cfg.model.head.in_channels == 32


def test_the_written_config_is_the_same(tmp_path):
    cfg = swap_backbone(load('mmdet', FASTER), 's')
    cfg.dump(tmp_path / 'swapped.py')
    read = Config.fromfile(tmp_path / 'swapped.py')
    assert read.to_dict() == cfg.to_dict()


def test_the_pages_example(tmp_path, monkeypatch):
    page = (ROOT / 'docs' / 'detection_and_segmentation.md').read_text()
    code = re.search(r'```python\n# swap.py\n(.*?)```', page, re.DOTALL).group(1)
    (tmp_path / 'faster-rcnn_r50_fpn_1x_coco.py').write_text(f'_base_ = {str(shipped_config("mmdet", FASTER))!r}\n')
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    written = Config.fromfile('faster-rcnn_partialnet-s_fpn_1x_coco.py')
    assert written.model.backbone.init_cfg.checkpoint == 'partialnet_s_in1k.pth'
    assert written.model.neck.in_channels == [96, 192, 384, 768]
    assert written.optim_wrapper.optimizer == dict(type='AdamW', lr=2e-4, weight_decay=1e-4)


def test_the_page_counts_the_configs():
    page = (ROOT / 'docs' / 'detection_and_segmentation.md').read_text()
    of = Counter(library for library, *_ in SWAPPED)
    assert (f'{len(SWAPPED)} shipped configs ({of["mmdet"]} detectors, {of["mmseg"]} segmentors, {of["mmpretrain"]} '
            f'classifiers),\nand in {len(FURTHER)} more') in page


def test_norms_learn_without_a_checkpoint():
    """mmdet's backbones keep the norms of their pretraining, which random weights do not have."""
    cfg = load('mmdet', FASTER)
    assert cfg.model.backbone.norm_eval is True
    assert 'norm_eval' not in swap_backbone(cfg, ARCH).model.backbone
    assert swap_backbone(cfg, ARCH, checkpoint='x.pth').model.backbone.norm_eval is True
    assert swap_backbone(cfg, ARCH, 'x.pth', dict(norm_eval=False)).model.backbone.norm_eval is False


@pytest.mark.parametrize('given, expected', [
    (None, ['partialnet_mm']),
    (dict(imports='one'), ['one', 'partialnet_mm']),
    (dict(imports=['one', 'partialnet_mm'], allow_failed_imports=True), ['one', 'partialnet_mm']),
])
def test_imports_are_added_to(given, expected):
    cfg = load('mmdet', RETINA)
    if given:
        cfg.custom_imports = given
    swapped = swap_backbone(cfg, ARCH).custom_imports
    assert swapped == dict(imports=expected, allow_failed_imports=(given or {}).get('allow_failed_imports', False))


@pytest.mark.parametrize('library, name, to_rgb', [
    ('mmdet', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'bgr_to_rgb'),  # BGR, not scaled
    ('mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py', 'bgr_to_rgb'),  # no normalization at all
    ('mmpretrain', 'convnext_v2/convnext-v2-atto_32xb32_in1k.py', 'to_rgb'),
])
def test_images_are_normalized_as_in_the_pretraining(library, name, to_rgb):
    cfg = load(library, name)
    if library == 'mmpretrain':
        cfg.data_preprocessor.to_rgb = False
    swapped = swap_backbone(cfg, ARCH)
    settings = swapped.model.data_preprocessor if library == 'mmdet' else swapped.data_preprocessor
    assert (settings.mean, settings.std, settings[to_rgb]) == (
        [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)


def test_images_of_other_channels_are_left(logged):
    cfg = load('mmdet', RETINA)
    cfg.model.backbone.in_channels = 1
    cfg.model.data_preprocessor.update(mean=[100.], std=[50.])
    swapped = swap_backbone(cfg, ARCH)
    assert swapped.model.backbone.in_channels == 1 and swapped.model.data_preprocessor.mean == [100.]
    assert any('data_preprocessor.mean=[100.0] was left' in text for text, _ in logged)


@pytest.mark.parametrize('channels, mean', [(4, [1., 2., 3., 4.]), (1, None), (6, [1., 2., 3.])])
def test_other_images_keep_their_normalization(channels, mean):
    """Of the old backbone, or of the new one alone."""
    cfg = load('mmdet', RETINA)
    cfg.model.data_preprocessor.mean = mean
    before = cfg.model.data_preprocessor.to_dict()
    swapped = swap_backbone(cfg, ARCH, backbone=dict(in_channels=channels))
    assert swapped.model.backbone.in_channels == channels
    assert swapped.model.data_preprocessor.to_dict() == before


def test_options_that_go_are_logged(logged):
    cfg = load('mmdet', RETINA)
    cfg.model.backbone.update(with_cp=True, norm_eval=True, norm_cfg=dict(type='GN', num_groups=32))
    expected = ["{'with_cp': True, 'frozen_stages': 1}; to set them", 'norm_eval=True of the old backbone was removed',
                'the norm of the backbone was GN and is a batch norm now']

    def swapped(**settings):
        logged.clear()
        swap_backbone(cfg, ARCH, **settings)
        return [any(text in line for line, _ in logged) for text in expected]

    assert swapped() == [True, True, True]
    assert swapped(checkpoint='x.pth') == [True, False, True]
    kept = dict(with_cp=True, frozen_stages=1, norm_cfg=dict(type='GN', num_groups=4))
    assert swapped(backbone=kept) == [False, True, False]


#: Classifiers whose old backbone returns logits or sequences of vectors, and what makes them small enough to train.
OTHER_CLASSIFIERS = {
    'inception_v3/inception-v3_8xb32_in1k.py': {},
    'mlp_mixer/mlp-mixer-base-p16_64xb64_in1k.py': {
        'model.backbone.arch': dict(
            _delete_=True, embed_dims=16, num_layers=1, tokens_mlp_dims=16, channels_mlp_dims=16),
        'model.head.in_channels': 16},
    # mmpretrain does not train it with distillation.
    'efficientformer/efficientformer-l1_8xb128_in1k.py': {'model.head.distillation': False},
}


@pytest.mark.parametrize('name, options', OTHER_CLASSIFIERS.items())
def test_classifiers_of_other_shapes_train_and_predict(name, options):
    cfg = load('mmpretrain', name)
    cfg.merge_from_dict(options)
    cfg = check_swapped('mmpretrain', cfg, LAST)
    assert cfg.model.neck == dict(type='GlobalAveragePooling') and cfg.model.head.in_channels == 128
    assert cfg.model.head.num_classes == load('mmpretrain', name).model.head.get('num_classes', 1000)


@pytest.mark.parametrize('written', ['list', 'dict'])
def test_the_encoder_of_a_retriever_is_swapped(written):
    cfg = load('mmpretrain', 'arcface/resnet50-arcface_8xb32_inshop.py')
    if written == 'dict':
        backbone, neck = cfg.model.image_encoder
        cfg.model.image_encoder = dict(type='ImageClassifier', backbone=backbone, neck=neck)
    swapped = swap_backbone(cfg, ARCH)
    encoder = swapped.model.image_encoder
    backbone, neck = encoder if written == 'list' else (encoder.backbone, encoder.neck)
    assert backbone.type == 'PartialNet' and neck.type == 'GlobalAveragePooling'
    assert swapped.model.head.in_channels == 128 and 'init_cfg' not in backbone
    swapped.model.prototype = 'features.pth'
    model = build_model(swapped)
    assert model.extract_feat(torch.rand(2, 3, 64, 64))[0].shape == (2, 128)


@pytest.mark.parametrize('init_cfg', [
    dict(type='Pretrained', checkpoint='whole.pth'),
    [dict(type='Normal', layer='Linear'), dict(type='Pretrained', checkpoint='whole.pth')],
])
def test_weights_of_the_old_model_are_dropped(logged, init_cfg):
    cfg = load('mmdet', RETINA)
    cfg.load_from = 'old.pth'
    cfg.model.init_cfg = init_cfg
    swapped = swap_backbone(cfg, ARCH)
    assert swapped.load_from is None and 'init_cfg' not in swapped.model
    texts = [text for text, _ in logged]
    assert any('whole.pth' in text for text in texts) and any('old.pth' in text for text in texts)


def test_other_initialization_stays():
    cfg = load('mmdet', RETINA)
    cfg.model.init_cfg = [dict(type='Normal', layer='Linear')]
    assert swap_backbone(cfg, ARCH).model.init_cfg == cfg.model.init_cfg


def test_the_detector_inside_another_model_is_swapped():
    name = 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    cfg = swap_backbone(load('mmdet', name), ARCH)
    assert cfg.model.detector.backbone.type == 'PartialNet'
    assert cfg.model.detector.neck.in_channels == list(CHANNELS)
    # Batches go through the preprocessor of the whole model.
    assert cfg.model.data_preprocessor.data_preprocessor.mean == [123.675, 116.28, 103.53]


def test_a_class_as_type():
    """As in configs in pure Python."""
    cfg = load('mmdet', RETINA)
    from mmdet.models import FPN, ResNet
    cfg.model.backbone.type, cfg.model.neck.type = ResNet, FPN
    swapped = swap_backbone(cfg, ARCH)
    assert swapped.model.backbone.type == 'PartialNet' and swapped.model.neck.in_channels == [32, 64, 128]


@pytest.mark.parametrize('library, name, expected', [
    ('mmdet', FASTER, ['optim_wrapper.optimizer is SGD with lr=0.02; PartialNet was trained with AdamW']),
    ('mmdet', 'dino/dino-4scale_r50_8xb2-12e_coco.py', []),
    ('mmdet', 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', [
        "custom_keys names parameters of the old backbone only: ['relative_position_bias_table']"]),
    ('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', [
        'the strides of feature maps change: 8 becomes 16, 8 becomes 32', 'optimizer is SGD with lr=0.01']),
    ('mmpretrain', 'resnet/resnet18_8xb16_cifar10.py', [
        'the last feature map had stride 8 and now has 32', 'SGD with lr=0.1']),
])
def test_what_cannot_be_set_is_logged(logged, library, name, expected):
    swap_backbone(load(library, name), ARCH)
    warnings = [text for text, level in logged if level == logging.WARNING]
    assert len(warnings) == len(expected)
    assert all(message in text for message, text in zip(expected, warnings))


def test_an_unknown_neck_is_logged(logged):
    cfg = load('mmdet', RETINA)
    cfg.model.neck.type = 'MyFPN'
    assert swap_backbone(cfg, ARCH).model.neck.in_channels == [32, 64, 128]
    assert any("model.neck of type MyFPN is unknown" in text for text, _ in logged)


def test_mmdets_layer_decay_becomes_partialnets(logged):
    cfg = load('mmdet', 'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py')
    assert cfg.optim_wrapper.constructor == 'LearningRateDecayOptimizerConstructor'
    cfg = swap_backbone(cfg, ARCH)
    assert any('LearningRateDecayOptimizerConstructor does not support PartialNet' in text for text, _ in logged)
    assert 'mmpretrain.models' in cfg.custom_imports.imports
    cfg.optim_wrapper.type = 'OptimWrapper'
    shrink(cfg.model)
    model = build_model(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    rates = {p: group['lr'] for group in groups for p in group['params']}
    assert rates[model.neck.lateral_convs[0].conv.weight] == 1e-4
    assert rates[model.backbone.downsample_layers[0].conv.weight] == pytest.approx(1e-4 * 0.95**6)


@pytest.mark.parametrize('library, name, message', [
    ('mmdet', 'faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py', r'FasterRCNN has no neck: .*\(C4, DC5\)'),
    ('mmdet', 'faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py', r'FasterRCNN has no neck: .*\(C4, DC5\)'),
    ('mmdet', 'ssd/ssd300_coco.py', 'model.neck of type SSDNeck cannot read PartialNet'),
    ('mmdet', 'detectors/cascade-rcnn_r50-rfp_1x_coco.py', 'RFP cannot read PartialNet: it runs a second backbone'),
    ('mmdet', 'nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco.py', 'NASFCOS_FPN cannot read PartialNet'),
    ('mmdet', 'rpn/rpn_r50-caffe-c4_1x_coco.py', r'strides \[16\].*stride 32.*would not be trained'),
    ('mmdet', 'rtmdet/rtmdet_x_p6_4xb8-300e_coco.py', r'strides \[8, 16, 32, 64\], .* has 4, 8, 16 and 32'),
    ('mmseg', 'bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py', 'one feature map per stride'),
    ('mmseg', 'ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py', 'DDRHead cannot read PartialNet'),
    ('mmseg', 'fastfcn/fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024.py', 'JPU cannot read PartialNet'),
    ('mmseg', 'mobilenet_v3/mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024.py',
     r'strides \[2, 4, 8\].*has 4, 8, 16 and 32'),
    ('mmseg', 'ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py', r'OCRHead .* strides \[16, 32\]'),
    ('mmseg', 'san/san-vit-b16_coco-stuff164k-640x640.py', 'MultimodalEncoderDecoder has no backbone to replace'),
])
def test_what_cannot_work_is_an_error(library, name, message):
    with pytest.raises(ValueError, match=message):
        swap_backbone(load(library, name), ARCH)


@pytest.mark.parametrize('head', ['naive', 'pup'])
def test_setr_is_an_error(head):
    cfg = load('mmseg', f'setr/setr_vit-l_{head}_8xb1-80k_cityscapes-768x768.py')
    cfg.model.backbone.update(img_size=128, num_layers=4, embed_dims=32, num_heads=2, out_indices=(0, 1, 2, 3))
    with pytest.raises(ValueError, match='decode_head of type SETRUPHead cannot read PartialNet: it enlarges'):
        swap_backbone(cfg, ARCH)


def test_wrong_arguments_are_errors():
    cfg = load('mmdet', RETINA)
    with pytest.raises(TypeError, match='cfg must be an mmengine Config, got str; Config.fromfile'):
        swap_backbone('retinanet.py')
    with pytest.raises(TypeError, match="no argument 'droppath_rate'"):
        swap_backbone(cfg, ARCH, backbone=dict(droppath_rate=0.1))
    with pytest.raises(ValueError, match="arch 'xl' is unknown"):
        swap_backbone(cfg, 'xl')
    with pytest.raises(ValueError, match=r'out_indices is \(0, 1, 2, 3\), but .* read stages \(1, 2, 3\)'):
        swap_backbone(cfg, ARCH, backbone=dict(out_indices=(0, 1, 2, 3)))
    assert swap_backbone(cfg, ARCH, backbone=dict(out_indices=(1, 2, -1))).model.neck.in_channels == [32, 64, 128]
    cfg.model.neck.in_channels = [64, 128, 256]
    with pytest.raises(ValueError, match=r'model.neck.in_channels is \[64, 128, 256\], but .* \[64, 128, 256, 512\]'):
        swap_backbone(cfg, ARCH)
    cfg.default_scope = cfg.model.type = None
    with pytest.raises(ValueError, match="cannot be built: .* The config has no default_scope, .* set it to 'mmdet'"):
        swap_backbone(cfg, ARCH)
    cfg.model.backbone.update(type='mmdet.ResNet', width=2)
    with pytest.raises(ValueError, match="unexpected keyword argument 'width'$"):
        swap_backbone(cfg, ARCH)
    cfg.default_scope, cfg.model.type = 'mmdet', 'RetinaNet'
    cfg.model.backbone.type = 'Nothing'
    with pytest.raises(ValueError, match='the backbone Nothing cannot be built'):
        swap_backbone(cfg, ARCH)
    segmentor = load('mmseg', 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py')
    segmentor.model.decode_head.in_index = 4
    with pytest.raises(ValueError, match='model.decode_head.in_index is 4, but the backbone returns 4 feature maps'):
        swap_backbone(segmentor, ARCH)


def test_measured_maps():
    measured = measure_backbone(dict(type='PartialNet', arch=ARCH, out_indices=(0, 3), out_norm=False))
    assert measured.maps == [FeatureMap(16, 4), FeatureMap(128, 32)]
    assert measured.parameters == [name for name, _ in PartialNet(ARCH).named_parameters()]
    with pytest.raises(ValueError, match=r'PartialNet cannot be run. 128 x 128: .*; 224 x 224: .*; 256 x 256: '):
        measure_backbone(dict(type='PartialNet', arch=ARCH, in_channels=1))
    with_weights = dict(type='PartialNet', arch=ARCH, init_cfg=dict(type='Pretrained', checkpoint='not_there.pth'))
    assert measure_backbone(with_weights).maps == [FeatureMap(128, 32)]
