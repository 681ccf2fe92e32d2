# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""torch.compile: one graph without breaks, for all kinds of blocks, in training and inference, for changing sizes.

The quick tests compile the backbone, which has PAT_ch, PAT_sf and PAT_sp; to follow sizes as symbols takes minutes.
"""
import copy
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch.nn.modules.batchnorm import _BatchNorm

from partialnet_mm.models import PartialNet, PartialNetBlock, PartialNetBlockV2
from partialnet_mm.models.merged_block import MergedBlock
from partialnet_mm.models.partialnet import Downsample
from partialnet_mm.models.token_mixers import build_token_mixer
from tests.helpers.networks import ALL, relative_error

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 12) and not hasattr(torch.nn, 'attention'),
                                reason='torch 2.1 compiles on Python up to 3.11')

FORMS = ('train', 'eval', 'merged')
BLOCKS = dict(
    pat_ch=dict(mixer='pat_ch'), pat_sf=dict(mixer='pat_sf'), srm=dict(mixer='pat_ch', gate='srm'),
    se=dict(mixer='pat_ch', gate='se'), eca=dict(mixer='pat_ch', gate='eca'), cbam=dict(mixer='pat_ch', gate='cbam'),
    full_ch=dict(mixer='full_ch'), full_sf=dict(mixer='full_sf'),
    partial_conv=dict(mixer='partial_conv'), conv=dict(mixer='conv'), depthwise=dict(mixer='depthwise_conv'),
    no_split=dict(mixer='pat_ch', split_ratio=1.), full_sp=dict(mixer='pat_ch', spatial_attention='full'),
    no_sp=dict(mixer='pat_ch', spatial_attention='none'),
    scaled=dict(mixer='pat_ch', drop_path_rate=0.5, layer_scale_init_value=0.1))


class CountingBackend:
    """A backend that counts the graphs that it gets."""

    def __init__(self, name: str) -> None:
        self.compile = lookup_backend(name)
        self.graphs = 0

    def __call__(self, *args: object) -> object:
        self.graphs += 1
        return self.compile(*args)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build_block(mixer, gate='gaussian', split_ratio=0.25, **kwargs):
    mixer = build_token_mixer(mixer, 16, num_heads=2, split_ratio=split_ratio, gate=gate)
    block_type = PartialNetBlockV2 if getattr(mixer, 'own_residual', False) else PartialNetBlock
    return block_type(mixer, 16, **kwargs)


def in_form(module: nn.Module, form: str) -> nn.Module:
    module.train(form == 'train')
    if form == 'merged' and isinstance(module, PartialNetBlock):
        return MergedBlock(module).eval()
    if form == 'merged':
        module.switch_to_deploy()
    return module


def outputs_and_gradients(run, module, x, learns):
    """Outputs and, where asked for, the gradients of parameters and input; random numbers are the same each time."""
    torch.manual_seed(0)
    module.zero_grad()
    x = x.clone().requires_grad_(learns)
    with torch.set_grad_enabled(learns):
        outs = run(x)
    outs = outs if isinstance(outs, tuple) else (outs, )
    if not learns:
        return [out.clone() for out in outs]
    sum(out.square().mean() for out in outs).backward()
    named = dict(module.named_parameters())
    assert all(p.grad is not None for p in named.values())
    return [out.detach() for out in outs] + [p.grad.clone() for p in named.values()] + [x.grad]


def assert_compiles(module, form, sizes, dynamic, backend='aot_eager', tolerance=1e-5):
    counting = CountingBackend(backend)
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend=counting)
    graphs = []
    for size in sizes:
        x = torch.randn(size)
        found = outputs_and_gradients(compiled, module, x, form == 'train')
        wanted = outputs_and_gradients(eager, eager, x, form == 'train')
        largest = max(want.abs().max() for want in wanted)
        assert len(found) == len(wanted)
        for out, want in zip(found, wanted):
            # A gradient may be zero but for rounding: that of a convolution's weights before a batch norm has none.
            assert (out - want).abs().max() <= tolerance * want.abs().max() + 1e-7 * largest
        graphs.append(counting.graphs)
    for (name, buffer), want in zip(module.named_buffers(), eager.buffers()):
        assert torch.allclose(buffer.float(), want.float(), rtol=tolerance, atol=tolerance), name
    # One compilation may try more than once; another size must not start one.
    assert graphs[0] > 0 and graphs == [graphs[0]] * len(graphs)


@pytest.mark.slow
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', BLOCKS)
def test_block_is_one_graph_for_all_sizes(kind, form, randomize_norms):
    block = in_form(randomize_norms(build_block(**BLOCKS[kind])), form)
    assert_compiles(block, form, [(2, 16, 6, 5), (3, 16, 9, 8)], dynamic=True)


@pytest.mark.parametrize('form', ['train', pytest.param('eval', marks=pytest.mark.slow), 'merged'])
def test_backbone_is_one_graph(form, randomize_norms):
    arch = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='GELU'))
    backbone = in_form(randomize_norms(PartialNet(arch, out_indices=ALL)), form)
    assert_compiles(backbone, form, [(2, 3, 65, 96)], dynamic=False)


@pytest.mark.slow
@pytest.mark.parametrize('form', FORMS)
def test_backbone_is_one_graph_for_all_sizes(form, tiny_arch, randomize_norms):
    backbone = in_form(randomize_norms(PartialNet(tiny_arch, out_indices=ALL)), form)
    assert_compiles(backbone, form, [(2, 3, 64, 96), (3, 3, 225, 193)], dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize('form', FORMS)
def test_inductor(form, tiny_arch, randomize_norms):
    backbone = in_form(randomize_norms(PartialNet(tiny_arch, out_indices=ALL)), form)
    # Other kernels sum in another order.
    assert_compiles(backbone, form, [(2, 3, 64, 96)], dynamic=False, backend='inductor', tolerance=1e-3)


@pytest.mark.parametrize('mixer', ['pat_ch', pytest.param('pat_sf', marks=pytest.mark.slow)])
def test_folded_training_compiles_the_plain_form(mixer, randomize_norms):
    """The compiled plain block has outputs and gradients of the folded one in eager mode."""
    layers = nn.Sequential(Downsample(16, 16, 2), build_block(mixer))
    randomize_norms(layers).train()
    for module in layers.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    for layer in layers:
        layer.train_folded = True
    assert_compiles(layers, 'train', [(2, 16, 12, 10)], dynamic=False, backend='eager')


def test_merged_mlps_are_matrix_products():
    """On a CPU, compiled matrix products are quicker than compiled 1x1 convolutions."""
    block = in_form(build_block('pat_ch'), 'merged')
    convolutions = []

    def backend(graph, inputs):
        for node in graph.graph.nodes:
            # torch 2.1 calls the layer, later versions the function.
            is_layer = node.op == 'call_module' and isinstance(graph.get_submodule(node.target), nn.Conv2d)
            if is_layer or node.op == 'call_function' and 'conv2d' in str(node.target):
                convolutions.append(node.name)
        return graph.forward

    x = torch.randn(2, 16, 8, 6)
    with torch.no_grad():
        assert relative_error(torch.compile(block, backend=backend, fullgraph=True)(x), block(x)) <= 1e-5
    assert len(convolutions) == 1  # of 3x3
