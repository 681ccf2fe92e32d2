# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""torch.export and TorchScript traces: right at sizes and batches other than the one that was traced."""
import inspect

import pytest
import torch

from partialnet_mm.deploy.exported_form import exported_form
from partialnet_mm.models import PartialNet
from tests.helpers.networks import ALL, relative_error

ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='GELU'))
#: Batches, odd sizes, and more distances than the traced feature map had.
SHAPES = ((1, 3, 64, 64), (3, 3, 225, 193), (2, 3, 64, 864))


def both_forms(**marks):
    """Parametrizes the backbone; ``marks`` are those of a form."""
    return pytest.mark.parametrize('backbone', [pytest.param(form, marks=marks.get(form, ())) for form in (
        'trainable', 'merged')], indirect=True)


@pytest.fixture
def backbone(request, randomize_norms):
    model = randomize_norms(PartialNet(ARCH, out_indices=ALL)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith('position_bias.table'):
            torch.nn.init.normal_(parameter)
    if request.param == 'merged':
        model.switch_to_deploy()
    return model


@torch.no_grad()
def difference(run, backbone, shape):
    images = torch.randn(shape)
    return relative_error(run(images), backbone(images))


@both_forms()
@pytest.mark.parametrize('batch', [1, 2])
def test_trace_is_right_at_other_sizes(backbone, batch, tmp_path):
    """A trace of one image at one size serves all: the position bias is computed from the size of the feature map."""
    with torch.no_grad():
        traced = torch.jit.trace(backbone, torch.randn(batch, 3, 96, 128))
    torch.jit.save(traced, str(tmp_path / 'traced.pt'))
    loaded = torch.jit.load(str(tmp_path / 'traced.pt'))
    frozen = torch.jit.freeze(loaded)
    for shape in (*SHAPES, (2, 3, 32, 33)):
        assert difference(loaded, backbone, shape) < 1e-5
        assert difference(frozen, backbone, shape) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize('form', ['trainable', 'merged', 'exported'])
def test_trace_is_right_on_a_single_pixel(form):
    """The deviation of a single pixel is 0, in a trace of many pixels, too."""
    backbone = PartialNet(ARCH, token_mixers='pat_ch', out_indices=ALL).eval()
    if form != 'trainable':
        backbone.switch_to_deploy()
    run = exported_form(backbone) if form == 'exported' else backbone
    traced = torch.jit.trace(run, torch.randn(2, 3, 96, 128))
    for size in (32, 64):
        assert difference(traced, backbone, (2, 3, size, size)) < 1e-5


@both_forms(trainable=pytest.mark.slow)
def test_export_is_right_at_other_sizes(backbone):
    if 'dynamic_shapes' not in inspect.signature(torch.export.export).parameters:
        pytest.skip('torch 2.1: a prototype, which takes the batch and the sizes of PartialNet for constants')
    sizes = {0: torch.export.Dim('batch'), 2: torch.export.Dim('height', min=64), 3: torch.export.Dim('width', min=64)}
    exported = torch.export.export(backbone, (torch.randn(2, 3, 96, 128), ), dynamic_shapes=(sizes, )).module()
    for shape in SHAPES:
        assert difference(exported, backbone, shape) < 1e-5


@both_forms()
def test_export_of_one_size(backbone):
    images = torch.randn(2, 3, 32, 64)
    exported = torch.export.export(backbone, (images, ))
    run = exported.module() if hasattr(exported, 'module') else exported  # torch 2.1 calls the program itself
    assert difference(run, backbone, images.shape) < 1e-5
