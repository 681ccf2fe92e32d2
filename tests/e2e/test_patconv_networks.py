# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The networks of Table 5 with PATConv: their configs, their recipes, and the command that compares them."""
import re
from collections.abc import Callable

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.data_pipeline import plain_pipeline
from partialnet_mm.models import PATConv2d, require_patconv
from tests.helpers.libraries import ROOT, parameters_without_gradient, shipped_config, training_loss
from tests.helpers.tool_scripts import run_main

CONFIGS = ROOT / 'configs' / 'patconv'
# Network: widths of its spatial convolutions, their kernel, whether they are depthwise; the original's parameters.
NETWORKS = {
    'resnet50': ([64] * 3 + [128] * 4 + [256] * 6 + [512] * 3, 3, False, 25_557_032),
    'mobilenet_v2': ([32, 96, 144, 144] + [192] * 3 + [384] * 4 + [576] * 3 + [960] * 3, 3, True, 3_504_872),
    'convnext_t': ([96] * 3 + [192] * 3 + [384] * 9 + [768] * 3, 7, True, 28_589_128),
}
RECIPES = {
    'resnet50': 'resnet/resnet50_8xb32_in1k.py',
    'mobilenet_v2': 'mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'convnext_t': 'convnext/convnext-tiny_32xb128_in1k.py',
}


def load(name: str) -> Config:
    pytest.importorskip('mmdet' if name.startswith('mask_rcnn') else 'mmpretrain')
    return Config.fromfile(CONFIGS / f'{name}.py')


def patconvs(model: nn.Module) -> list[PATConv2d]:
    return [module for module in model.modules() if isinstance(module, PATConv2d)]


@pytest.mark.parametrize('network', NETWORKS)
def test_every_spatial_convolution_is_replaced(network):
    widths, kernel_size, depthwise, original = NETWORKS[network]
    cfg = load(f'{network}_patconv_in1k')
    assert cfg.auto_scale_lr.enable is False and cfg.default_scope == 'mmpretrain'
    cfg.model.train_cfg = None
    model = build_model(cfg)
    require_patconv(model, cfg.model)
    layers = patconvs(model)
    assert sorted(layer.in_channels for layer in layers) == sorted(widths)
    assert {layer.kernel_size for layer in layers} == {(kernel_size, kernel_size)}
    assert {(layer.gate.conv.kernel_size, layer.conv.groups) for layer in layers} == {((1, 2), 1)}
    # Parameters: a dense convolution of a quarter, a gate of twice its width squared and two norms for the rest.
    bias = network == 'convnext_t'
    params = original
    for width in widths:
        params -= width * (1 if depthwise else width) * kernel_size**2 + bias * width
        part, rest = width // 4, width - width // 4
        params += part**2 * kernel_size**2 + bias * part + 2 * rest**2 + 4 * rest
    assert sum(p.numel() for p in model.parameters()) == params


def same(mine: object, theirs: object) -> bool:
    """Whether two parts of configs say the same; what only theirs does not say is a default of mmengine's."""
    if isinstance(theirs, dict):
        return all(key in mine and same(mine[key], value) for key, value in theirs.items())
    if isinstance(theirs, (list, tuple)):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    return mine == theirs


@pytest.mark.parametrize('network', RECIPES)
def test_imagenet_recipes_are_mmpretrains(network):
    cfg = load(f'{network}_patconv_in1k')
    shipped = Config.fromfile(shipped_config('mmpretrain', RECIPES[network]))
    assert cfg.optim_wrapper.type == 'OptimWrapper' and shipped.optim_wrapper.get('type') is None
    assert cfg.optim_wrapper.optimizer == shipped.optim_wrapper.optimizer
    assert cfg.optim_wrapper.get('clip_grad') is None and shipped.optim_wrapper.get('clip_grad') is None
    paramwise = dict(shipped.optim_wrapper.get('paramwise_cfg') or {})
    paramwise.pop('custom_keys', None)  # names of Swin's parameters
    assert (cfg.optim_wrapper.get('paramwise_cfg') or {}) == paramwise
    for key in ('param_scheduler', 'train_cfg', 'data_preprocessor'):
        assert cfg[key] == shipped[key]
    assert cfg.auto_scale_lr.base_batch_size == shipped.auto_scale_lr.base_batch_size
    assert cfg.train_dataloader.batch_size == shipped.train_dataloader.batch_size
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert plain_pipeline(cfg[loader].dataset.pipeline) == shipped[loader].dataset.pipeline
    assert (cfg.get('custom_hooks') or []) == (shipped.get('custom_hooks') or [])
    assert same(cfg.model.head, shipped.model.head)
    backbone = dict(cfg.model.backbone)
    if network == 'convnext_t':
        assert backbone.pop('type') == 'PATConvNeXt'
        assert dict(backbone, type='ConvNeXt') == shipped.model.backbone
        assert cfg.model.train_cfg == shipped.model.train_cfg and cfg.model.init_cfg == shipped.model.init_cfg
    else:
        assert backbone.pop('conv_cfg') == dict(type='PATConv')
        assert backbone == shipped.model.backbone and cfg.model.neck == shipped.model.neck


@pytest.mark.parametrize('network', NETWORKS)
def test_cifar_pairs_differ_in_the_convolution_only(network):
    original, patconv = (load(f'{network}{kind}_cifar10') for kind in ('', '_patconv'))
    assert patconv.model.head.num_classes == 10
    change = patconv.model.backbone.pop('conv_cfg', None) or patconv.model.backbone.type
    assert change == ('PATConvNeXt' if network == 'convnext_t' else dict(type='PATConv'))
    patconv.model.backbone.type = original.model.backbone.type
    assert patconv.to_dict() == original.to_dict()
    assert original.train_cfg.max_epochs == 3 and original.param_scheduler[-1].end == 3


def test_one_trains():
    cfg = load('mobilenet_v2_patconv_cifar10')
    model = build_model(cfg)
    training_loss(cfg, model).backward()
    assert parameters_without_gradient(model) == []


@pytest.mark.parametrize('network, layers', [('resnet50', 16), ('convnext_t', 18)])
def test_mask_rcnn_takes_the_pretrained_backbone(network, layers):
    cfg, pretraining = load(f'mask_rcnn_{network}_patconv_1x'), load(f'{network}_patconv_in1k')
    init_cfg = cfg.model.backbone.pop('init_cfg')
    epochs = pretraining.train_cfg.max_epochs
    assert init_cfg == dict(type='Pretrained', prefix='backbone.',
                            checkpoint=f'work_dirs/{network}_patconv_in1k/epoch_{epochs}.pth')
    assert cfg.train_cfg.max_epochs == 12 and cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    model = build_model(cfg).train()
    assert len(patconvs(model)) == layers
    assert not any(layer.norm.training or layer.gate.norm.training for layer in patconvs(model))
    pretraining.model.train_cfg = None
    pretrained = {name: value.shape for name, value in build_model(pretraining).backbone.state_dict().items()}
    mine = {name: value.shape for name, value in model.backbone.state_dict().items()
            if not name.startswith(('norm0', 'norm1', 'norm2'))}
    assert mine == pretrained

    with DefaultScope.overwrite_default_scope('mmdet'):
        if cfg.optim_wrapper.type == 'AmpOptimWrapper':  # mmengine builds it where there is a GPU
            cfg.optim_wrapper.type = 'OptimWrapper'
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    if network == 'resnet50':
        shipped = Config.fromfile(shipped_config('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'))
        assert cfg.optim_wrapper == shipped.optim_wrapper and cfg.param_scheduler == shipped.param_scheduler
        assert dict(cfg.model.backbone, init_cfg=None, conv_cfg=None) == dict(
            shipped.model.backbone, init_cfg=None, conv_cfg=None)
        assert set(rates.values()) == {0.02}
    else:
        assert cfg.model.backbone.patconv_cfg == dict(norm_eval=True)
        blocks = [model.backbone.stages[0][0], model.backbone.stages[2][8], model.backbone.stages[3][2]]
        for block, depth in zip(blocks, (6, 2, 1)):
            assert {rates[id(p)] for p in block.parameters()} == {1e-4 * 0.95**depth}


Rows = Callable[..., 'list[list[str]]']


@pytest.fixture
def run(monkeypatch, capsys) -> Rows:
    """Runs the command, and gives the rows of the tables that it prints."""
    pytest.importorskip('mmpretrain')

    def rows_of(*options: str) -> list[list[str]]:
        assert run_main(monkeypatch, 'tools/paper/patconv_networks.py', *options) == 0
        return [[cell.strip() for cell in line.strip('|').split('|')] for line in capsys.readouterr().out.splitlines()
                if line.startswith('|') and not line.startswith('|---')]

    return rows_of


def test_counts_on_the_page_are_what_the_command_prints(run):
    page = (ROOT / 'docs' / 'patconv.md').read_text()
    rows = run()
    assert len(rows) == 7
    assert [row for row in rows if f'| {" | ".join(row)} |' not in page] == []
    counted = {tuple(row[:2]): [float(cell) for cell in row[2:]] for row in rows[1:]}
    for name, (_, _, _, params) in zip(('ResNet-50', 'MobileNetV2', 'ConvNeXt-T'), NETWORKS.values()):
        assert counted[name, 'dense'][0] == pytest.approx(params / 1e6, abs=0.005)
    assert counted['ResNet-50', 'dense'][2:] == [4.089, 2.357, 1.74]


def test_times(run):
    counts, times = (lambda rows: (rows[:2], rows[2:]))(run(
        '--networks', 'MobileNetV2', '--conv', 'depthwise', '--latency', '--size', '64', '--rounds', '2'))
    assert counts[0][4] == 'multiply-adds (G), 64 x 64'
    assert times[1][:2] == ['MobileNetV2', 'depthwise'] and times[1][5] == '1.16'
    low, high = map(float, re.search(r'\((\S+)-(\S+)\)', times[1][4]).groups())
    assert 0 < low <= float(times[1][4].split()[0]) <= high


@pytest.mark.parametrize('options, message', [
    (('--rounds', '0'), '--rounds: must be a number of at least 1, got 0'),
    (('--networks', 'ResNet-49'), "invalid choice: 'ResNet-49'"),
])
def test_wrong_options(options, message, monkeypatch, capsys):
    assert run_main(monkeypatch, 'tools/paper/patconv_networks.py', *options) == 2
    assert message in capsys.readouterr().err
