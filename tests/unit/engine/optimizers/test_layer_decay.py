# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Learning rates by layer: this project's constructor in every library, and the libraries' own."""
import math

import pytest
from mmengine.logging import MMLogger
from mmengine.optim import LinearLR, build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from partialnet_mm.models import PartialNet
from tests.helpers.libraries import build_model, readme_snippets
from tests.helpers.snippets import SNIPPETS, load_snippet

ARCH = dict(embed_dim=16, depths=(1, 2, 4, 2), num_heads=2, act_cfg=dict(type='ReLU'))
LAYERS = 9 + 2  # stem, nine blocks, head
OURS = 'PartialNetLayerDecayConstructor'


def optim_wrapper_cfg(constructor, paramwise_cfg, **optimizer):
    optimizer = dict(dict(type='AdamW', lr=1., weight_decay=0.05), **optimizer)
    return dict(type='OptimWrapper', constructor=constructor, paramwise_cfg=paramwise_cfg, optimizer=optimizer)


def settings_of(optim_wrapper, model):
    """Learning rate and weight decay of each parameter by name; each must be in one group."""
    groups = optim_wrapper.optimizer.param_groups
    given = [p for group in groups for p in group['params']]
    assert len(given) == len(set(given))
    assert set(given) == {p for p in model.parameters() if p.requires_grad}
    by_parameter = {p: (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    return {name: by_parameter[p] for name, p in model.named_parameters() if p in by_parameter}


def rates(model, constructor, paramwise_cfg, scope='mmengine'):
    """Learning rate of each parameter by name."""
    with DefaultScope.overwrite_default_scope(scope):
        optim_wrapper = build_optim_wrapper(model, optim_wrapper_cfg(constructor, paramwise_cfg))
    return {name: lr for name, (lr, _) in settings_of(optim_wrapper, model).items()}


def test_rates_of_t0():
    """The stem, 1 + 2 + 6 + 4 blocks, and the rest: 15 layers."""
    model = PartialNet('t0', out_indices=(0, 1, 2, 3))
    lr = rates(model, OURS, dict(decay_rate=0.5))
    expected = {'downsample_layers.0.': 14, 'stages.0.0.': 13,
                'downsample_layers.1.': 12, 'stages.1.0.': 12, 'stages.1.1.': 11,
                'downsample_layers.2.': 10, **{f'stages.2.{i}.': 10 - i for i in range(6)},
                'downsample_layers.3.': 4, **{f'stages.3.{i}.': 4 - i for i in range(4)},
                **{f'norm{i}.': 0 for i in range(4)}}
    for prefix, power in expected.items():
        found = {value for name, value in lr.items() if name.startswith(prefix)}
        assert found == {0.5**power}, prefix
    assert sum(name.startswith(tuple(expected)) for name in lr) == len(lr)


@pytest.mark.parametrize('name', SNIPPETS)
def test_every_library(name, tmp_path):
    """In models of the pages' configs: later layers have higher rates, the rest of the model the full rate."""
    snippet_config = load_snippet(tmp_path, name, readme_snippets()[name], *SNIPPETS[name])
    snippet_config.model.backbone.arch = ARCH
    model = build_model(snippet_config)
    lr = rates(model, OURS, dict(decay_rate=0.5), snippet_config.default_scope)
    in_order = [('backbone.downsample_layers.0.', 10), ('backbone.stages.0.0.', 9), ('backbone.stages.1.0.', 8),
                ('backbone.stages.1.1.', 7), *[(f'backbone.stages.2.{i}.', 6 - i) for i in range(4)],
                ('backbone.downsample_layers.3.', 2), ('backbone.stages.3.0.', 2), ('backbone.stages.3.1.', 1)]
    for prefix, power in in_order:
        assert {value for name, value in lr.items() if name.startswith(prefix)} == {0.5**power}, prefix
    rest = {name: value for name, value in lr.items()
            if not name.startswith(('backbone.stages.', 'backbone.downsample_layers.'))}
    assert len(rest) > 1 and set(rest.values()) == {1.}


def classifier():
    from mmpretrain.registry import MODELS
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(
            type='ImageClassifier',
            backbone=dict(type='PartialNet', arch=ARCH),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=128)))


def test_mmpretrains_constructor():
    pytest.importorskip('mmpretrain')
    lr = rates(classifier(), 'LearningRateDecayOptimWrapperConstructor', dict(layer_decay_rate=0.5), 'mmpretrain')
    assert lr['head.fc.weight'] == 1
    assert lr['backbone.stages.3.1.token_mixer.proj.weight'] == 0.5
    assert lr['backbone.stages.3.0.mlp.conv1.weight'] == lr['backbone.downsample_layers.3.conv.weight'] == 0.25
    assert lr['backbone.stages.2.0.token_mixer.gate.conv.weight'] == 0.5**6
    assert lr['backbone.stages.0.0.mlp.conv2.weight'] == 0.5**9
    assert lr['backbone.downsample_layers.0.conv.weight'] == lr['backbone.downsample_layers.0.norm.bias'] == 0.5**10
    assert len(set(lr.values())) == LAYERS


SPARED = dict(norm_decay_mult=0., bias_decay_mult=0., flat_decay_mult=0.,
              custom_keys={'position_bias': dict(decay_mult=0.), 'token_mixer.gate': dict(decay_mult=0.5)})


def test_equals_mmpretrains_constructor():
    """Rates and weight decay, with the keys that both have."""
    pytest.importorskip('mmpretrain')
    model = classifier()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        theirs = build_optim_wrapper(model, optim_wrapper_cfg(
            'LearningRateDecayOptimWrapperConstructor', dict(layer_decay_rate=0.8, **SPARED)))
        ours = build_optim_wrapper(model, optim_wrapper_cfg(OURS, dict(decay_rate=0.8, **SPARED)))
    assert settings_of(ours, model) == settings_of(theirs, model)


def test_a_backbone_of_mmpretrain_in_a_detector():
    """The constructor uses get_layer_depth, nothing of PartialNet."""
    pytest.importorskip('mmpretrain')
    from mmpretrain.models import ConvNeXt
    model = nn.Module()
    model.backbone = ConvNeXt(dict(depths=[1, 1, 3, 1], channels=[8, 16, 32, 64]))
    model.bbox_head = nn.Linear(2, 2)
    lr = rates(model, OURS, dict(decay_rate=0.5))
    expected = {}
    for name, _ in model.named_parameters():
        depth, layers = model.backbone.get_layer_depth(name, 'backbone.')
        expected[name] = 1. if name.startswith('bbox_head') else 0.5**(layers - 1 - depth)
    assert lr == expected and len(set(lr.values())) > 3


def test_two_backbones_each_by_its_own_layers():
    model = nn.ModuleDict(dict(
        small=PartialNet(dict(ARCH, depths=(1, 1, 1, 1))), large=PartialNet(ARCH), head=nn.Linear(2, 2)))
    lr = rates(model, OURS, dict(decay_rate=0.5))
    assert lr['small.downsample_layers.0.conv.weight'] == 0.5**5
    assert lr['large.downsample_layers.0.conv.weight'] == 0.5**10
    assert lr['small.stages.3.0.mlp.conv1.weight'] == lr['large.stages.3.1.mlp.conv1.weight'] == 0.5
    assert lr['head.weight'] == 1


def test_multiplies_the_rates_of_other_keys():
    model = nn.ModuleDict(dict(backbone=PartialNet(ARCH), head=nn.Linear(2, 2)))
    lr = rates(model, OURS, dict(decay_rate=0.5, bias_lr_mult=2.,
                                 custom_keys={'token_mixer.gate': dict(lr_mult=10.), 'head': dict(lr_mult=3.)}))
    assert lr['backbone.stages.0.0.token_mixer.gate.conv.weight'] == 10 * 0.5**9
    assert lr['backbone.stages.0.0.token_mixer.conv.weight'] == 0.5**9
    assert lr['backbone.stages.3.1.token_mixer.proj.bias'] == 2 * 0.5
    assert lr['backbone.stages.3.1.token_mixer.norm.bias'] == 0.5  # bias_lr_mult is not for norms
    assert lr['head.weight'] == lr['head.bias'] == 3


def test_one_is_no_decay():
    assert set(rates(PartialNet(ARCH), OURS, dict(decay_rate=1)).values()) == {1.}


@pytest.mark.parametrize('frozen_stages, fastest', [(2, 0.5), (4, None)])
def test_frozen_stages_stay_out_of_the_optimizer(frozen_stages, fastest):
    model = nn.ModuleDict(dict(backbone=PartialNet(ARCH, frozen_stages=frozen_stages), head=nn.Linear(2, 2)))
    lr = rates(model, OURS, dict(decay_rate=0.5))
    assert lr.pop('head.weight') == lr.pop('head.bias') == 1
    assert not [name for name in lr if name.startswith(('backbone.downsample_layers.0', 'backbone.stages.1'))]
    assert max(lr.values(), default=None) == fastest


def test_logs_the_rates(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        rates(nn.ModuleDict(dict(backbone=PartialNet(ARCH, frozen_stages=2), head=nn.Linear(2, 2))), OURS,
              dict(decay_rate=0.5, bias_lr_mult=2.))
    finally:
        logger.removeHandler(caplog.handler)
    logged, = (record.getMessage() for record in caplog.records if 'by layer' in record.getMessage())
    lines = logged.splitlines()
    assert lines[0] == 'learning rates by layer:'
    assert '  backbone.layer 9 of 11: 0.5 to 1 for 17 parameters' in lines
    assert lines[-1] == '  the rest of the model: 1 to 2 for 2 parameters'
    assert len(lines) == 1 + 6 + 1  # the blocks of stages 3 and 4


@pytest.mark.parametrize('paramwise_cfg, fragments', [
    (None, ("needs paramwise_cfg['decay_rate'] in (0, 1], got None", )),
    (dict(norm_decay_mult=0.), ("needs paramwise_cfg['decay_rate'] in (0, 1], got None", )),
    (dict(decay_rate=0), ('(0, 1], got 0', )),
    (dict(decay_rate=1.1), ('(0, 1], got 1.1', )),
    (dict(decay_rate='0.9'), ("(0, 1], got '0.9'", )),
    (dict(decay_rate=math.nan), ('(0, 1], got nan', )),
    (dict(decay_rate=0.9, num_layers=6), ("no key 'num_layers' (given num_layers=6)", "backbone's own")),
    (dict(layer_decay_rate=0.9), ("no key 'layer_decay_rate'", 'Allowed are decay_rate, custom_keys')),
    (dict(decay_rate=0.9, norm_decay=0.), ("no key 'norm_decay'", 'norm_decay_mult')),
])
def test_refuses_bad_settings(paramwise_cfg, fragments):
    with pytest.raises(ValueError) as error:
        build_optim_wrapper(PartialNet(ARCH), optim_wrapper_cfg(OURS, paramwise_cfg))
    for fragment in (OURS, *fragments):
        assert fragment in str(error.value)


def test_refuses_an_optimizer_without_rate():
    cfg = optim_wrapper_cfg(OURS, dict(decay_rate=0.9))
    del cfg['optimizer']['lr']
    with pytest.raises(ValueError, match=r"needs an lr in optim_wrapper.optimizer, got \{'type': 'AdamW'"):
        build_optim_wrapper(PartialNet(ARCH), cfg)


def test_refuses_a_model_without_layers():
    with pytest.raises(ValueError, match='no module of Sequential has a method get_layer_depth'):
        build_optim_wrapper(nn.Sequential(nn.Linear(2, 2)), optim_wrapper_cfg(OURS, dict(decay_rate=0.9)))


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_the_constructors_of_mmdet_and_mmseg_depend_on_class_names(library):
    """The reason for a constructor of this project: they raise for every backbone not called ConvNeXt."""
    pytest.importorskip(library)
    model = nn.ModuleDict(dict(backbone=PartialNet(ARCH), head=nn.Linear(2, 2)))
    for decay_type in ('layer_wise', 'stage_wise'):
        with pytest.raises(NotImplementedError):
            rates(model, 'LearningRateDecayOptimizerConstructor',
                  dict(decay_rate=0.5, decay_type=decay_type, num_layers=6), library)


def test_schedules_keep_the_ratios():
    """A warm-up multiplies each layer's own rate."""
    model = PartialNet(ARCH)
    optim_wrapper = build_optim_wrapper(model, optim_wrapper_cfg(OURS, dict(decay_rate=0.5)))
    full = {name: lr for name, (lr, _) in settings_of(optim_wrapper, model).items()}
    assert len(set(full.values())) == LAYERS - 1
    scheduler = LinearLR(optim_wrapper, start_factor=0.25, end=2)
    assert {name: lr for name, (lr, _) in settings_of(optim_wrapper, model).items()} == {
        name: 0.25 * lr for name, lr in full.items()}
    for _ in range(2):
        optim_wrapper.optimizer.step()
        scheduler.step()
    assert {name: lr for name, (lr, _) in settings_of(optim_wrapper, model).items()} == pytest.approx(full)
