# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A type of a config means the same as a name, with a library, as saved, as a class and as a lazy import."""
import sys

import pytest
import torch
from mmcv.ops import nms
from mmcv.transforms import RandomResize
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.hooks import EMAHook
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from torch import nn

from partialnet_mm import PartialNet, swap_backbone
from partialnet_mm.analysis.data_pipeline import plain_pipeline, resolutions_of
from partialnet_mm.checkpoint import MissingCheckpointError
from partialnet_mm.checkpoint.pretrained import content_for, pretrained_cfg
from partialnet_mm.config_types import complete_types, find_type, library_of, type_name
from partialnet_mm.datasets.transforms import FastRandomFlip, FastRandomResizedCrop
from partialnet_mm.engine.hooks import TrainResolutionHook
from partialnet_mm.engine.runners.batch_size import apply_images_per_gpu
from partialnet_mm.engine.runners.command_line import train_in_float32
from partialnet_mm.engine.runners.config_file import unknown_keys
from partialnet_mm.engine.runners.missing import require_checkpoints
from partialnet_mm.models import build_patconv, require_patconv
from partialnet_mm.models._folding import local_norm
from tests.helpers.libraries import shipped_config
from tests.helpers.tool_scripts import load_tool

FORMS = ('name', 'scoped', 'saved', 'class')
ARCH = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=2, act_cfg=dict(type='ReLU'))


@pytest.fixture(params=FORMS)
def form(request):
    """Writes a class, registered by ``name``, in one of the forms."""
    def write(kind, name=None, scope='mmengine'):
        name = name or kind.__name__
        return dict(name=name, scoped=f'{scope}.{name}', saved=f'{kind.__module__}.{kind.__name__}',
                    **{'class': kind})[request.param]

    return write


def test_the_name(form):
    assert type_name(form(EMAHook)) == 'EMAHook'
    assert type_name(form(PretrainedInit, 'Pretrained')) == 'Pretrained'
    assert type_name(form(nn.SyncBatchNorm, 'SyncBN')) == 'SyncBN'


def test_the_class(form):
    assert find_type(form(EMAHook), HOOKS) is EMAHook
    assert find_type(form(nn.Conv2d, scope='mmengine')) is nn.Conv2d


def test_lazy_imports_functions_and_nothing():
    lazy = LazyObject('mmengine.hooks', 'EMAHook')
    assert type_name(lazy) == 'EMAHook' and find_type(lazy, HOOKS) is EMAHook
    attribute = LazyObject(['mmengine.hooks']).hooks.EMAHook
    assert type_name(attribute) == 'EMAHook' and find_type(attribute, HOOKS) is EMAHook
    assert type_name(nms) == 'nms' and type_name(None) == 'None'
    assert find_type('NotThere') is None


def test_the_library_of_a_model(form):
    mmdet = pytest.importorskip('mmdet.models')
    own = type('Own', (mmdet.RetinaNet, ), {})
    assert library_of(own) == 'mmdet' and library_of(PartialNet) is None and library_of('RetinaNet') is None
    assert library_of(LazyObject('mmdet.models', 'RetinaNet')) == 'mmdet'
    kind = form(mmdet.RetinaNet, scope='mmdet')
    known = 'mmdet' if kind != 'RetinaNet' else None
    assert complete_types(Config(dict(model=dict(type=kind), default_scope=None))).get('default_scope') == known
    assert complete_types(Config(dict(model=dict(type=kind), default_scope='mmyolo'))).default_scope == 'mmyolo'


@pytest.mark.parametrize('kind', [nms, 'nms', 'mmcv.ops.nms.nms'])
def test_suppression_has_its_name(kind):
    """mmcv looks a text up among its functions, whose modules it does not know."""
    model = dict(type='X', test_cfg=dict(rcnn=[dict(nms=dict(type=kind))]))
    assert complete_types(Config(dict(model=model))).model.test_cfg.rcnn[0].nms.type == 'nms'


# Users of it, in the order of the folders.


def test_pretrained_weights_are_checked(form):
    kind = form(PretrainedInit, 'Pretrained')
    assert pretrained_cfg(dict(type=kind, checkpoint='x.pth', prefix='a')) == dict(checkpoint='x.pth', prefix='a.')
    with pytest.raises(MissingCheckpointError):
        PartialNet(ARCH, init_cfg=dict(type=kind, checkpoint='x.pth')).init_weights()
    with pytest.raises(MissingCheckpointError, match='model.backbone.init_cfg.checkpoint=FILE'):
        require_checkpoints(Config(dict(model=dict(backbone=dict(init_cfg=dict(type=kind, checkpoint='x.pth'))))))


def test_a_file_of_other_code_is_recognized(form):
    content = dict(model={'patch_embed.proj.weight': torch.zeros(1)})
    with pytest.raises(ValueError):
        content_for(dict(backbone=dict(type=form(PartialNet))), dict(state_dict=3))
    assert content_for(dict(backbone=dict(type='ResNet')), content) is content


def test_merged_norms_are_local(form):
    assert local_norm(dict(type=form(nn.SyncBatchNorm, 'SyncBN'), eps=1e-3)) == dict(type='BN', eps=1e-3)


def test_patconv_that_has_replaced_nothing(form):
    with pytest.raises(ValueError, match="is of type 'PATConv' and has replaced no layer"):
        require_patconv(nn.Sequential(nn.Linear(1, 1)), dict(conv_cfg=dict(type=form(build_patconv, 'PATConv'))))


def test_mixed_precision_on_a_cpu(form):
    cfg = Config(dict(optim_wrapper=dict(type=form(AmpOptimWrapper), loss_scale='dynamic', optimizer=dict(lr=1))))
    train_in_float32(cfg)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(lr=1))


def test_iterations_are_not_accumulated(form):
    cfg = Config(dict(
        train_dataloader=dict(batch_size=4), images_per_gpu=1, auto_scale_lr=dict(base_batch_size=4),
        optim_wrapper=dict(optimizer=dict(lr=1)), train_cfg=dict(type=form(IterBasedTrainLoop), max_iters=4)))
    with pytest.raises(ValueError, match='counts iterations in its loop'):
        apply_images_per_gpu(cfg, 1)


def test_arguments_are_known(form):
    cfg = Config(dict(hook=dict(type=form(EMAHook))))
    assert list(unknown_keys(cfg, {'hook.strict_load': True})) == []
    assert len(list(unknown_keys(cfg, {'hook.strict_lod': True}))) == 1


def test_the_steps_of_a_pipeline(form):
    steps = [dict(type=form(FastRandomResizedCrop), scale=224), dict(type=form(FastRandomFlip), prob=0.5)]
    assert [step['type'] for step in plain_pipeline(steps)] == ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip']
    cfg = Config(dict(train_dataloader=dict(dataset=dict(pipeline=[*steps, dict(type=form(RandomResize), scale=1)]))))
    assert resolutions_of(cfg) == [224]
    cfg.custom_hooks = [dict(type=form(TrainResolutionHook), sizes=[128, 160])]
    assert resolutions_of(cfg) == [128, 160]


def test_the_options_of_a_test(form, tmp_path):
    """--show-dir, --deploy and --out."""
    hooks = pytest.importorskip('mmdet.engine.hooks')
    tool = load_tool('tools/test.py')
    cfg = Config(dict(
        default_hooks=dict(visualization=dict(type=form(hooks.DetVisualizationHook, scope='mmdet'))),
        custom_hooks=[dict(type=form(EMAHook), momentum=1e-3), dict(type='NumClassCheckHook')],
        model=dict(type='mmdet.RetinaNet'), test_evaluator=dict(type='CocoMetric')))
    tool.draw_predictions(cfg, str(tmp_path))
    assert cfg.default_hooks.visualization.test_out_dir == str(tmp_path)
    tool.drop_averaging(cfg)
    assert [hook.type for hook in cfg.custom_hooks] == ['NumClassCheckHook']
    tool.dump_predictions(complete_types(cfg), 'x.pkl')
    assert cfg.test_evaluator[1].type == 'DumpDetResults'


def test_a_swapped_backbone(form, monkeypatch):
    """Its norms are synchronized, weights of the old model go, layer decay by class is replaced."""
    pytest.importorskip('mmdet.models')
    from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
    cfg = Config.fromfile(shipped_config('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py'))
    cfg.model.neck.norm_cfg = dict(type=form(nn.SyncBatchNorm, 'SyncBN'))
    cfg.model.init_cfg = dict(type=form(PretrainedInit, 'Pretrained'), checkpoint='whole.pth')
    cfg.optim_wrapper.constructor = form(LearningRateDecayOptimizerConstructor, scope='mmdet')
    cfg.optim_wrapper.paramwise_cfg = dict(decay_rate=0.9, decay_type='layer_wise', num_layers=6)
    texts = []
    monkeypatch.setattr(sys.modules['partialnet_mm.swap_backbone'], 'print_log', lambda text, **_: texts.append(text))
    swapped = swap_backbone(cfg, ARCH)
    assert swapped.model.backbone.norm_cfg == dict(type='SyncBN') and 'init_cfg' not in swapped.model
    assert swapped.optim_wrapper.constructor == 'PartialNetLayerDecayConstructor'
    assert any('whole.pth' in text for text in texts)
