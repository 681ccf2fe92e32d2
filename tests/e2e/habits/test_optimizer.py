# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Weight decay, learning rates by layer, accumulation, mixed precision."""
import re
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from partialnet_mm import PartialNet
from tests.helpers.libraries import ROOT, build_model

# What is neither norm, bias, position table nor gate: the weights of convolutions and matrices.
DECAYED = re.compile(r'backbone\.(downsample_layers\.\d\.conv|stages\.\d\.\d\.('
                     r'token_mixer\.(conv|qkv|proj)|mlp\.conv[12]|spatial_attention\.rest_conv))\.weight')


def settings(path):
    """Learning rate and weight decay of each parameter of a config's model, by name."""
    cfg = Config.fromfile(path)
    model = build_model(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    by_parameter = {p: (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    return {name: by_parameter[p] for name, p in model.named_parameters()}


def test_weight_decay_spares_norms_biases_tables_and_gates(write_config):
    path = write_config('weight_decay.py', more='model = dict(backbone=dict(layer_scale_init_value=0.1))')
    decay = {name: value for name, (_, value) in settings(path).items()}
    assert set(decay.values()) == {0., 0.05}
    backbone = {name: value for name, value in decay.items() if name.startswith('backbone.')}
    assert {name for name, value in backbone.items() if value} == {name for name in backbone if DECAYED.fullmatch(name)}
    spared = {name for name, value in backbone.items() if not value}
    for part in ('gate.conv.weight', 'gate.norm.weight', 'logit_conv.weight', 'position_bias.table', 'norm.weight',
                 'layer_scale', 'proj.bias', 'norm3.bias'):
        assert any(name.endswith(part) for name in spared), part
    others = {name: value for name, value in decay.items() if name not in backbone}
    assert {name for name, value in others.items() if not value} == {n for n in others if n.endswith('.bias')}


def test_without_the_block_everything_decays(write_config):
    assert {decay for _, decay in settings(write_config()).values()} == {0.05}


def test_layer_decay(write_config):
    """Of a detector with 1 + 1 + 2 + 1 blocks: 7 layers."""
    found = settings(write_config('layer_decay.py'))
    power = {'backbone.downsample_layers.0.conv.weight': 6, 'backbone.stages.0.0.mlp.conv1.weight': 5,
             'backbone.stages.1.0.mlp.conv1.weight': 4, 'backbone.stages.2.0.mlp.conv1.weight': 3,
             'backbone.stages.2.1.mlp.conv1.weight': 2, 'backbone.stages.3.0.token_mixer.qkv.weight': 1,
             'backbone.norm0.weight': 0, 'neck.fpn_convs.0.conv.weight': 0, 'roi_head.mask_head.conv_logits.weight': 0}
    for name, i in power.items():
        assert found[name] == (pytest.approx(1e-3 * 0.9**i), 0. if 'norm' in name else 0.05), name
    assert found['backbone.stages.3.0.token_mixer.proj.bias'] == (pytest.approx(9e-4), 0.)


def test_layer_decay_of_mmpretrain(blocks, tmp_path):
    """The same rates by both constructors, in a classifier of this project."""
    pytest.importorskip('mmpretrain')
    found = []
    for block in ('layer_decay.py', 'layer_decay_mmpretrain.py'):
        path = tmp_path / block
        path.write_text(f"_base_ = {str(ROOT / 'configs/pretrain/partialnet_t0_in1k.py')!r}\n{blocks[block]}"
                        "optim_wrapper.update(type='OptimWrapper')\n")
        found.append(settings(path))
    assert found[0] == found[1]
    assert found[0]['backbone.downsample_layers.0.conv.weight'][0] == pytest.approx(4e-3 * 0.9**14)


def test_layer_decay_of_mmdet(write_config, blocks, tmp_path, monkeypatch):
    """mmdet's constructor as it is, with a class that has the name that it looks for."""
    (tmp_path / 'convnext_named.py').write_text(blocks['convnext_named.py'])
    monkeypatch.syspath_prepend(tmp_path)
    found = settings(write_config('layer_decay_mmdet.py'))
    assert 'convnext_named' in sys.modules
    power = {'backbone.downsample_layers.0.conv.weight': 6, 'backbone.stages.0.0.mlp.conv1.weight': 5,
             'backbone.stages.1.0.mlp.conv1.weight': 4, 'backbone.stages.2.0.mlp.conv1.weight': 3,
             'backbone.stages.2.1.mlp.conv1.weight': 3, 'backbone.stages.3.0.token_mixer.qkv.weight': 1,
             'backbone.norm0.weight': 0, 'neck.fpn_convs.0.conv.weight': 0}
    assert {name: found[name][0] for name in power} == {name: pytest.approx(1e-3 * 0.9**i)
                                                        for name, i in power.items()}


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('arch, num_layers', [('t0', 5), ('t1', 5), ('t2', 5), ('s', 6), ('m', 9), ('l', 10)])
def test_number_of_layers_for_mmdets_constructor(library, arch, num_layers):
    """The least number with which the last block of stage 3 comes before stage 4."""
    module = pytest.importorskip(f'{library}.engine.optimizers.layer_decay_optimizer_constructor')
    last_block = PartialNet.arch_settings[arch]['depths'][2] - 1

    def layer(name, number):
        return module.get_layer_id_for_convnext(name, number)

    assert layer(f'backbone.stages.2.{last_block}.mlp.conv1.weight', num_layers) == num_layers - 1
    assert layer('backbone.stages.3.0.mlp.conv1.weight', num_layers) == num_layers
    assert layer('backbone.stages.3.0.mlp.conv1.weight', num_layers - 1) == num_layers - 1


@pytest.mark.parametrize('arch, layers', [('t0', 15), ('s', 19), ('m', 27), ('l', 31)])
def test_numbers_of_layers_on_the_page(arch, layers):
    assert sum(PartialNet.arch_settings[arch]['depths']) + 2 == layers


class MeanOfImages(BaseModel):
    """A loss that is a mean over images, of a backbone whose norms do not mix them."""

    def __init__(self, arch):
        super().__init__()
        self.backbone = PartialNet(arch, norm_eval=True)
        self.head = nn.Linear(128, 3)

    def forward(self, inputs, labels, mode):
        return dict(loss=nn.functional.cross_entropy(self.head(self.backbone(inputs)[0].mean((2, 3))), labels))


def test_accumulated_halves_are_one_batch(write_config, tiny_arch):
    cfg = Config.fromfile(write_config('accumulate.py')).optim_wrapper
    cfg.optimizer = dict(type='SGD', lr=0.5, momentum=0.9)
    assert cfg.accumulative_counts == 2
    images, labels = torch.rand(2, 8, 3, 32, 32), torch.randint(3, (2, 8))
    weights = []
    for accumulate in (True, False):
        torch.manual_seed(0)
        model = MeanOfImages(tiny_arch).train()
        model.backbone.init_weights()
        start = model.backbone.stages[3][0].mlp.conv1.weight.detach().clone()
        optim_wrapper = build_optim_wrapper(model, dict(cfg, accumulative_counts=2 if accumulate else 1))
        for batch, label in zip(images, labels):
            if accumulate:
                before = {name: p.detach().clone() for name, p in model.named_parameters()}
                model.train_step(dict(inputs=batch[:4], labels=label[:4]), optim_wrapper)
                assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
                model.train_step(dict(inputs=batch[4:], labels=label[4:]), optim_wrapper)
            else:
                model.train_step(dict(inputs=batch, labels=label), optim_wrapper)
        weights.append(dict(model.named_parameters()))
        assert (weights[-1]['backbone.stages.3.0.mlp.conv1.weight'] - start).abs().max() > 1e-4
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_bfloat16_trains_as_float32_does(tiny_arch, randomize_norms):
    """Mixed precision as the CPU has it: the same loss and the same gradient."""
    model = MeanOfImages(tiny_arch)
    model.backbone.init_weights()
    randomize_norms(model).train()
    data = dict(inputs=torch.rand(4, 3, 64, 64), labels=torch.tensor([0, 1, 2, 1]), mode='loss')
    dtypes, found = [], []
    model.backbone.stages[2][0].mlp.conv1.register_forward_hook(lambda _, args, out: dtypes.append(out.dtype))
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            loss = model(**data)['loss']
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert dtypes == [torch.float32, torch.bfloat16]
    (loss, gradient), (loss16, gradient16) = found
    assert loss16 == pytest.approx(loss, rel=0.01)
    assert (gradient16 - gradient).norm() < 0.03 * gradient.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='AmpOptimWrapper needs a GPU')
def test_mixed_precision_trains_on_a_gpu(build_runner):
    runner = build_runner('amp.py')
    dtypes = set()
    runner.model.backbone.stages[2][0].mlp.conv1.register_forward_hook(lambda _, args, out: dtypes.add(out.dtype))
    runner.train()
    assert torch.float16 in dtypes
    assert runner.optim_wrapper.loss_scaler.is_enabled()
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
