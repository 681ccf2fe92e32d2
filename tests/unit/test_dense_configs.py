# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Detectors and segmentors differ from the configs of mmdet and mmseg only in the backbone and what it requires."""
import pytest
import torch
from mmengine.config import Config

from partialnet_mm import PartialNet
from partialnet_mm.models import _layers
from tests.helpers.batches import loss_of, predictions_of, random_batch, shrink
from tests.helpers.config_differences import MISSING, SGD_TO_ADAMW, differences, settings_of
from tests.helpers.libraries import ROOT, build_model, parameters_without_gradient, shipped_config

# ResNet's stages 2 to 4 have 512, 1024 and 2048 channels.
FROM_STAGE_2 = {
    'model.neck.start_level': (1, 0),
    'model.neck.in_channels': ([256, 512, 1024, 2048], [192, 384, 768]),
}
RGB = {
    'model.data_preprocessor.mean': ([103.53, 116.28, 123.675], [123.675, 116.28, 103.53]),
    'model.data_preprocessor.std': ([57.375, 57.12, 58.395], [58.395, 57.12, 57.375]),
    'model.data_preprocessor.bgr_to_rgb': (False, True),
}
#: Config: mmdet's, the differences as (theirs, ours), the arguments of the backbone besides arch and weights.
DETECTORS: dict[str, tuple[str, dict, dict]] = {
    'cascade_mask_rcnn/cascade_mask_rcnn_partialnet_s_1x.py': (
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', {
            **SGD_TO_ADAMW,
            'optim_wrapper.optimizer.lr': (0.02, 2e-4),
            'model.neck.in_channels': ([256, 512, 1024, 2048], [96, 192, 384, 768]),
        }, dict(out_indices=(0, 1, 2, 3), norm_eval=True, train_folded='auto')),
    'retinanet/retinanet_partialnet_s_1x.py': (
        'retinanet/retinanet_r50_fpn_1x_coco.py', {
            **SGD_TO_ADAMW, **FROM_STAGE_2, 'optim_wrapper.optimizer.lr': (0.01, 1e-4),
        }, dict(out_indices=(1, 2, 3), norm_eval=True, train_folded='auto')),
    'atss/atss_partialnet_s_1x.py': (
        'atss/atss_r50_fpn_1x_coco.py', {
            **SGD_TO_ADAMW, **FROM_STAGE_2, 'optim_wrapper.optimizer.lr': (0.01, 1e-4),
        }, dict(out_indices=(1, 2, 3), norm_eval=True, train_folded='auto')),
    'rtmdet/rtmdet_partialnet_s_300e.py': (
        'rtmdet/rtmdet_m_8xb32-300e_coco.py', {
            **RGB,
            # mmdet's is that of another schedule: 8 GPUs with 32 images are 256.
            'auto_scale_lr.base_batch_size': (16, 256),
        }, dict(out_indices=(1, 2, 3), norm_cfg=dict(type='SyncBN'))),
    'dino/dino_partialnet_s_12e.py': (
        'dino/dino-4scale_r50_8xb2-12e_coco.py', {
            'model.neck.in_channels': ([512, 1024, 2048], [192, 384, 768]),
            'auto_scale_lr.enable': (MISSING, False),
        }, dict(out_indices=(1, 2, 3), norm_eval=True, train_folded='auto')),
    'mask_rcnn/partialnet_s_3x_ms.py': (
        'mask_rcnn/mask-rcnn_r50_fpn_ms-poly-3x_coco.py', {
            **SGD_TO_ADAMW,
            'optim_wrapper.optimizer.lr': (0.02, 2e-4),
            'model.neck.in_channels': ([256, 512, 1024, 2048], [96, 192, 384, 768]),
            'val_evaluator.format_only': (MISSING, False),
            'test_evaluator.format_only': (MISSING, False),
        }, dict(out_indices=(0, 1, 2, 3), norm_eval=True, train_folded='auto')),
}


#: Config: mmseg's, the differences as (theirs, ours).
SEGMENTORS = {
    'semantic_fpn/semantic_fpn_partialnet_s_80k_ade20k.py': ('sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', {
        'model.pretrained': ('open-mmlab://resnet50_v1c', MISSING),
        'model.neck.in_channels': ([256, 512, 1024, 2048], [96, 192, 384, 768]),
        # mmseg's backbones other than ResNet train for 80k iterations with AdamW.
        'train_cfg.max_iters': (160000, 80000),
        'train_cfg.val_interval': (16000, 8000),
        'param_scheduler[0].end': (160000, 80000),
        'param_scheduler[0].eta_min': (1e-4, 0.0),
        'optim_wrapper.optimizer.type': ('SGD', 'AdamW'),
        'optim_wrapper.optimizer.lr': (0.01, 1e-4),
        'optim_wrapper.optimizer.weight_decay': (5e-4, 1e-4),
        'optim_wrapper.optimizer.momentum': (0.9, MISSING),
        'optim_wrapper.clip_grad': (None, MISSING),
        'auto_scale_lr': (MISSING, dict(enable=False, base_batch_size=16)),
    }),
    # ConvNeXt-T has the channels of PartialNet-S.
    'upernet/upernet_partialnet_s_160k_ade20k.py': ('convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py', {
        'model.pretrained': (None, MISSING),
        'optim_wrapper.constructor': ('LearningRateDecayOptimizerConstructor', 'PartialNetLayerDecayConstructor'),
        'optim_wrapper.paramwise_cfg.decay_type': ('stage_wise', MISSING),
        'optim_wrapper.paramwise_cfg.num_layers': (6, MISSING),
        # mmseg's constructor always does these three.
        'optim_wrapper.paramwise_cfg.norm_decay_mult': (MISSING, 0.),
        'optim_wrapper.paramwise_cfg.bias_decay_mult': (MISSING, 0.),
        'optim_wrapper.paramwise_cfg.flat_decay_mult': (MISSING, 0.),
        'optim_wrapper.paramwise_cfg.custom_keys': (MISSING, {'position_bias.table': dict(decay_mult=0.)}),
        'auto_scale_lr': (MISSING, dict(enable=False, base_batch_size=16)),
    }),
    'upernet/upernet_partialnet_s_80k_cityscapes.py': ('upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py', {
        'model.pretrained': ('open-mmlab://resnet50_v1c', MISSING),
        'model.decode_head.in_channels': ([256, 512, 1024, 2048], [96, 192, 384, 768]),
        'model.auxiliary_head.in_channels': (1024, 384),
        'auto_scale_lr': (MISSING, dict(enable=False, base_batch_size=8)),
    }),
}
VARIANTS = [(folder, arch, length) for folder, length in (('semantic_fpn', '80k'), ('upernet', '160k'))
            for arch in 'sml']


def load(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    pytest.importorskip(cfg.default_scope)
    return cfg


@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS])
def test_differs_from_the_librarys_config_in_what_the_backbone_requires(name):
    shipped, expected = (DETECTORS.get(name) or SEGMENTORS[name])[:2]
    ours = load(name)
    theirs = Config.fromfile(shipped_config(ours.default_scope, shipped))
    found = differences(settings_of(theirs), settings_of(ours))
    if 'cityscapes' in name:  # the optimizer is that of ADE20K, over half of the iterations
        ade20k = load('upernet/upernet_partialnet_s_160k_ade20k.py')
        assert differences(ade20k.optim_wrapper, ours.optim_wrapper) == {}
        assert differences(ade20k.param_scheduler, ours.param_scheduler) == {'[1].end': (160000, 80000)}
        found = {key: values for key, values in found.items()
                 if not key.startswith(('optim_wrapper', 'param_scheduler'))}
    assert found == expected


@pytest.mark.parametrize('name', DETECTORS)
def test_backbone_of_a_detector_is_partialnet_s_with_its_pretraining(name):
    *_, arguments = DETECTORS[name]
    backbone = Config.fromfile(ROOT / 'configs' / name).model.backbone
    assert backbone == dict(
        type='PartialNet', arch='s', drop_path_rate=0.15, **arguments,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/partialnet_s_in1k/epoch_300.pth', prefix='backbone.'))


@pytest.mark.parametrize('folder, arch, length', VARIANTS)
def test_variants_read_the_channels_of_their_backbone(folder, arch, length):
    model = load(f'{folder}/{folder}_partialnet_{arch}_{length}_ade20k.py').model
    width = PartialNet.arch_settings[arch]['embed_dim']
    channels = [width, 2 * width, 4 * width, 8 * width]
    assert (model.backbone.type, model.backbone.arch, model.backbone.out_indices) == ('PartialNet', arch, (0, 1, 2, 3))
    assert model.backbone.init_cfg == dict(
        type='Pretrained', checkpoint=f'work_dirs/partialnet_{arch}_in1k/epoch_300.pth', prefix='backbone.')
    assert model.backbone.drop_path_rate == {
        'semantic_fpn': dict(s=0.1, m=0.15, l=0.2), 'upernet': dict(s=0.15, m=0.2, l=0.3)}[folder][arch]
    if folder == 'semantic_fpn':
        assert model.neck.in_channels == channels
    else:
        assert model.decode_head.in_channels == channels and model.auxiliary_head.in_channels == channels[2]


@pytest.mark.parametrize('arch', 'sml')
def test_layer_decay_gives_the_stem_the_same_rate_in_all_variants(arch):
    rate = load(f'upernet/upernet_partialnet_{arch}_160k_ade20k.py').optim_wrapper.paramwise_cfg.decay_rate
    blocks = sum(PartialNet.arch_settings[arch]['depths'])
    assert rate ** (blocks + 1) == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS, 'semantic_fpn/semantic_fpn_partialnet_t0_shapes.py'])
def test_trains_every_parameter_and_predicts(name, monkeypatch):
    """A config that keeps the statistics of its checkpoint logs that it has none here."""
    cfg = load(name)
    logged = []
    monkeypatch.setattr(_layers, 'print_log', lambda text, **_: logged.append(text))
    # Random weights, and no block dropped by chance.
    cfg.model.backbone.update(init_cfg=None, drop_path_rate=0.)
    shrink(cfg.model)
    if 'decode_head' in cfg.model:
        cfg.model.decode_head.channels = 64
    model = build_model(cfg)
    loss = loss_of(cfg, model, random_batch(cfg))
    assert torch.isfinite(loss)
    loss.backward()
    assert [text.split(',')[0] for text in logged] == ['norm_eval=True'] * cfg.model.backbone.get('norm_eval', False)
    found = predictions_of(cfg, model, random_batch(cfg))
    if 'decode_head' in cfg.model:
        assert parameters_without_gradient(model) == []
        assert [tuple(sample.pred_sem_seg.data.shape) for sample in found] == [(1, 64, 96)] * 2
    else:
        assert parameters_without_gradient(model.backbone) == []
        assert len(found) == 2 and all(torch.isfinite(sample.pred_instances.bboxes).all() for sample in found)
