# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Every config builds; those of the paper agree with its tables."""
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, TRANSFORMS, init_default_scope

from partialnet_mm.models import PartialNet, PATConv2d
from tests.helpers.config_differences import MISSING, SGD_TO_ADAMW, differences, settings_of
from tests.helpers.libraries import ROOT, build_model, shipped_config

#: mmdet's for random weights, and with large-scale jitter.
SCRATCH = 'scratch/mask-rcnn_r50-scratch_fpn_gn-all_6x_coco.py'
LSJ = 'strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-100e_coco.py'

CONFIGS = sorted(p.relative_to(ROOT / 'configs').as_posix() for p in (ROOT / 'configs').glob('*/*.py')
                 if p.parent.name != '_base_')

# Learning rate, stochastic depth, parameters in M. S to L are Table 7's, and counted with the official modules.
TABLE_7 = {
    't0': (2e-4, 0, 22.71), 't1': (2e-4, 0.05, 26.11), 't2': (2e-4, 0.1, 30.87),
    's': (2e-4, 0.15, 46.99), 'm': (1e-4, 0.2, 79.18), 'l': (1e-4, 0.3, 122.07),
}

# Table 8: batch, learning rate, weight decay, stochastic depth, gradient clipping, RandAugment, mixup. Last, channels
# of the last stage, from the variants' table.
TABLE_8 = {
    't0': (4096, 4e-3, 0.005, 0, None, None, 0.05, 256),
    't1': (4096, 4e-3, 0.01, 0.02, None, 3, 0.1, 384),
    't2': (4096, 4e-3, 0.02, 0.05, None, 5, 0.1, 512),
    's': (4096, 4e-3, 0.03, 0.1, None, 7, 0.3, 768),
    'm': (2048, 2e-3, 0.05, 0.2, 1, 7, 0.5, 1024),
    'l': (2048, 2e-3, 0.05, 0.3, 0.01, 7, 0.7, 1280),
}


def load(name: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / name)
    pytest.importorskip(cfg.default_scope)
    return cfg


def test_file_names_differ():
    """mim finds a config by its file name, and a training writes to a folder of that name."""
    names = [Path(name).name for name in CONFIGS]
    assert sorted(set(names)) == sorted(names)


def test_paths_that_users_rely_on():
    assert {f'mask_rcnn/partialnet_{arch}_1x.py' for arch in 'sml'} <= set(CONFIGS)
    assert {name for name in CONFIGS if name.startswith('pretrain/')} == {
        f'pretrain/partialnet_{arch}_in1k.py' for arch in TABLE_8}


@pytest.mark.parametrize('name', CONFIGS)
def test_config_is_self_contained_and_builds(name):
    cfg = load(name)
    assert cfg.custom_imports == dict(imports=['partialnet_mm'], allow_failed_imports=False)
    assert cfg.auto_scale_lr.enable is False
    assert cfg.default_scope in ('mmdet', 'mmpretrain', 'mmseg')
    # Networks of other libraries need values when they are built.
    with torch.device('cpu' if name.startswith('patconv/') else 'meta'):
        model = build_model(cfg, init=False)
    if name.startswith('patconv/'):
        assert any(isinstance(module, PATConv2d) for module in model.modules()) == ('_patconv' in name)
        return
    backbone = model.backbone
    if name == 'mask_rcnn/resnet50_1x.py':
        assert type(backbone).__name__ == 'ResNet' and model.neck.in_channels == [256, 512, 1024, 2048]
        return
    assert type(backbone).__name__ == 'PartialNet'
    widths = [backbone.channels[i] for i in backbone.out_indices]
    reader = getattr(model, 'neck', None)
    if cfg.default_scope == 'mmpretrain':
        assert model.head.in_channels == widths[-1]
    elif hasattr(reader, 'convs'):  # ChannelMapper
        assert [conv.conv.in_channels for conv in reader.convs] == widths
    elif reader is not None:
        assert list(reader.in_channels) == widths
    else:
        assert [widths[i] for i in model.decode_head.in_index] == list(model.decode_head.in_channels)


@pytest.mark.parametrize('arch', TABLE_7)
def test_mask_rcnn_1x_is_table_7(arch):
    lr, drop_path_rate, params = TABLE_7[arch]
    cfg = load(f'mask_rcnn/partialnet_{arch}_1x.py')
    backbone = cfg.model.backbone
    assert backbone.arch == arch and backbone.get('drop_path_rate', 0) == drop_path_rate
    assert backbone.norm_eval is True and backbone.out_indices == (0, 1, 2, 3)
    assert backbone.init_cfg == dict(
        type='Pretrained', checkpoint=f'work_dirs/partialnet_{arch}_in1k/epoch_300.pth', prefix='backbone.')

    # Optimizer: AdamW, weight decay 1e-4, no clipping.
    assert cfg.optim_wrapper == dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-4))
    # Schedule: 12 epochs, a tenth at 8 and 11, linear warm-up over 500 iterations.
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop' and cfg.train_cfg.max_epochs == 12
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, warm_up.end, warm_up.by_epoch) == ('LinearLR', 0, 500, False)
    assert (decay.type, decay.milestones, decay.gamma, decay.by_epoch) == ('MultiStepLR', [8, 11], 0.1, True)
    # Batch: 2 on each of 8 GPUs.
    assert cfg.train_dataloader.batch_size == 2 and cfg.auto_scale_lr.base_batch_size == 16
    # Resolution: shorter side 800, longer 1333, in training and test; flips as in mmdet's 1x base.
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.val_dataloader.dataset.pipeline):
        resize = [t for t in pipeline if t.type == 'Resize']
        assert resize == [dict(type='Resize', scale=(1333, 800), keep_ratio=True)]
    assert [t.type for t in cfg.train_dataloader.dataset.pipeline] == [
        'LoadImageFromFile', 'FastLoadAnnotations', 'Resize', 'FastRandomFlip', 'PackDetInputs']
    assert cfg.train_dataloader.dataset.pipeline[3].prob == 0.5
    assert not any('Flip' in t.type for t in cfg.val_dataloader.dataset.pipeline)
    # Data: COCO 2017 with box and mask AP.
    assert cfg.train_dataloader.dataset.data_root == 'data/coco/'
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_train2017.json'
    assert cfg.val_evaluator.ann_file == 'data/coco/annotations/instances_val2017.json'
    assert cfg.val_evaluator.metric == ['bbox', 'segm']

    # The last epochs, and the best.
    assert cfg.default_hooks.checkpoint == dict(
        type='CrashSafeCheckpointHook', interval=1, max_keep_ckpts=3, save_best='coco/bbox_mAP', rule='greater')

    with torch.device('meta'):
        model = build_model(cfg, init=False)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, abs=0.02)


@pytest.mark.parametrize('control', ['fasternet_s_1x.py', 'resnet50_1x.py'])
def test_controls_differ_from_partialnet_s_in_the_backbone_only(control):
    found = differences(load('mask_rcnn/partialnet_s_1x.py').to_dict(), load(f'mask_rcnn/{control}').to_dict())
    assert {key for key in found if not key.startswith('model.backbone.')} == {'model.neck.in_channels'}


def test_fasternet_s_has_the_stochastic_depth_and_the_network_of_its_own_config():
    backbone = load('mask_rcnn/fasternet_s_1x.py').model.backbone
    assert backbone.drop_path_rate == load('mask_rcnn/partialnet_s_1x.py').model.backbone.drop_path_rate
    network = load('ablations/fasternet_s_in1k.py').model.backbone
    assert {key: backbone[key] for key in ('arch', 'token_mixers', 'spatial_attention')} == {
        key: network[key] for key in ('arch', 'token_mixers', 'spatial_attention')}
    assert backbone.norm_eval is True


def test_resnet50_is_mmdets():
    shipped = Config.fromfile(shipped_config('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'))
    found = differences(settings_of(shipped), settings_of(load('mask_rcnn/resnet50_1x.py')))
    assert found == {**SGD_TO_ADAMW, 'optim_wrapper.optimizer.lr': (0.02, 2e-4)}


@pytest.mark.parametrize('arch, drop_path_rate', [('t0', 0), ('s', 0.15)])
def test_scratch_is_mmdets_scratch_and_lsj(arch, drop_path_rate):
    """The model of mmdet's config for random weights, with data and schedule of its large-scale jitter."""
    ours = load(f'mask_rcnn/partialnet_{arch}_scratch.py')
    width = PartialNet.arch_settings[arch]['embed_dim']
    assert ours.model.backbone == dict(
        type='PartialNet', arch=arch, out_indices=(0, 1, 2, 3), norm_cfg=dict(type='SyncBN'),
        **(dict(drop_path_rate=drop_path_rate) if drop_path_rate else {}))
    scratch, lsj = (settings_of(Config.fromfile(shipped_config('mmdet', name))) for name in (SCRATCH, LSJ))
    assert differences(scratch['model'], settings_of(ours)['model']) == {
        'neck.in_channels': ([256, 512, 1024, 2048], [width * 2**i for i in range(4)]),
        'data_preprocessor.batch_augments': (MISSING, lsj['model']['data_preprocessor']['batch_augments']),
    }
    lsj['model'] = settings_of(ours)['model']
    assert differences(lsj, settings_of(ours)) == {
        'train_dataloader.batch_size': (2, 8),
        'train_dataloader.num_workers': (2, 4),
        'train_dataloader.batch_sampler': (MISSING, None),
        'optim_wrapper.type': ('OptimWrapper', 'AmpOptimWrapper'),
        'optim_wrapper.optimizer.type': ('SGD', 'AdamW'),
        'optim_wrapper.optimizer.lr': (0.1, 4e-4),
        'optim_wrapper.optimizer.momentum': (0.9, MISSING),
        'optim_wrapper.optimizer.weight_decay': (4e-5, 0.05),
        'optim_wrapper.paramwise_cfg': (MISSING, dict(norm_decay_mult=0.)),
        'optim_wrapper.clip_grad': (MISSING, dict(max_norm=10.)),
        'auto_scale_lr.enable': (MISSING, False),
    }


@pytest.fixture(scope='module', params=TABLE_8)
def pretraining(request):
    """A variant, its config and the model that the config builds."""
    cfg = load(f'pretrain/partialnet_{request.param}_in1k.py')
    with torch.device('meta'):
        return request.param, cfg, build_model(cfg, init=False)


def test_pretraining_is_table_8(pretraining):
    arch, cfg, model = pretraining
    batch, lr, weight_decay, drop_path_rate, clipping, _, mixup, _ = TABLE_8[arch]
    # Optimizer: AdamW, mixed precision, clipping of the large ones.
    expected = dict(type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999),
                                                           weight_decay=weight_decay))
    assert cfg.optim_wrapper == (expected if clipping is None else dict(expected, clip_grad=dict(max_norm=clipping)))
    # Batch, on 8 GPUs; epochs; no repeated augmentation.
    assert cfg.train_dataloader.batch_size * 8 == batch == cfg.auto_scale_lr.base_batch_size
    assert cfg.train_cfg.type == 'EpochBasedTrainLoop' and cfg.train_cfg.max_epochs == 300
    assert cfg.train_dataloader.sampler == dict(type='DefaultSampler', shuffle=True)
    # Data: the usual folders.
    for loader, split in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val'), (cfg.test_dataloader, 'val')):
        assert (loader.dataset.type, loader.dataset.data_root, loader.dataset.split) == (
            'ImageNet', 'data/imagenet/', split)
        assert loader.collate_fn == dict(type='default_collate') and loader.pin_memory is True
    # Train resolution is the only custom hook, so there is no EMA.
    hook, = cfg.custom_hooks
    assert hook == dict(type='TrainResolutionHook', sizes=[128, 160, 192, 224, 256, 288])

    drops = [getattr(block.drop_path, 'drop_prob', 0) for stage in model.backbone.stages for block in stage]
    assert drops == pytest.approx([drop_path_rate * i / (len(drops) - 1) for i in range(len(drops))])
    loss = model.head.loss_module
    assert (type(loss).__name__, loss.label_smooth_val, loss.mode) == ('LabelSmoothLoss', 0.1, 'original')
    augments = model.data_preprocessor.batch_augments.augments
    assert [(type(a).__name__, a.alpha) for a in augments] == [('Mixup', mixup), ('CutMix', 1)]


@pytest.mark.parametrize('arch', TABLE_8)
def test_pretraining_augments_as_table_8(arch):
    magnitude = TABLE_8[arch][5]
    cfg = load(f'pretrain/partialnet_{arch}_in1k.py')
    init_default_scope(cfg.default_scope)
    train, test = ([TRANSFORMS.build(step) for step in loader.dataset.pipeline]
                   for loader in (cfg.train_dataloader, cfg.val_dataloader))
    # No erasing, no colour jitter.
    randaugment = [step for step in train if type(step).__name__ == 'FastRandAugment']
    assert [type(step).__name__ for step in train if step not in randaugment] == ['FastRandomResizedCrop', 'PackInputs']
    first = train[0]
    assert (first.interpolation, first.crop.crop_ratio_range, first.crop.aspect_ratio_range, first.flip_prob) == (
        'bicubic', (0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert [(step.magnitude_level, step.magnitude_std, step.total_level, step.num_policies, len(step.policies))
            for step in (fast.augment for fast in randaugment)] == (
                [] if magnitude is None else [(magnitude, 0.5, 10, 2, 15)])
    assert train[1] in [*randaugment, train[-1]], 'on images that are not packed yet'
    # Test: 224 of 224 / 0.9, bicubic.
    assert [type(step).__name__ for step in test] == [
        'LoadImageFromFile', 'FastResizeEdge', 'CenterCrop', 'PackInputs']
    assert (test[1].scale, test[1].interpolation) == (int(224 / 0.9), 'bicubic')
    assert tuple(test[2].crop_size) == (224, 224)
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.val_evaluator == dict(type='Accuracy', topk=(1, 5))


@pytest.mark.parametrize('arch', TABLE_8)
def test_pretraining_warms_up_and_decays_as_table_8(arch):
    """The learning rate of every iteration, at 10 iterations per epoch."""
    lr = TABLE_8[arch][1]
    cfg = load(f'pretrain/partialnet_{arch}_in1k.py')
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers = [PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=optimizer, epoch_length=10))
                  for scheduler in cfg.param_scheduler]
    optimizer.step()
    rates = []
    for _ in range(300):
        for _ in range(10):
            rates.append(optimizer.param_groups[0]['lr'])
            for scheduler in schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in schedulers:
            if scheduler.by_epoch:
                scheduler.step()
    # Linear from 1e-6 over 20 epochs, each iteration by as much.
    assert rates[:200] == pytest.approx([1e-6 + (lr - 1e-6) * i / 199 for i in range(200)])
    # Half a cosine from there to 1e-5 after the 300th epoch, by epochs.
    cosine = [1e-5 + (lr - 1e-5) * (1 + math.cos(math.pi * i / 280)) / 2 for i in range(280)]
    assert rates[200::10] == pytest.approx(cosine) and rates[209::10] == pytest.approx(cosine)


def test_pretrain_head_is_the_papers(pretraining):
    arch, _, model = pretraining
    channels = TABLE_8[arch][-1]
    assert model.backbone.channels[-1] == channels
    hidden, output = model.head.layers[0].fc, model.head.layers[-1].fc
    assert (hidden.in_features, hidden.out_features) == (channels, 1280)
    assert (output.in_features, output.out_features) == (1280, 1000)
    activation = 'GELU' if arch in ('t0', 't1') else 'ReLU'
    assert type(model.head.layers[0].act).__name__ == activation
    assert type(model.backbone.stages[0][0].mlp.act).__name__ == activation
