# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F

from partialnet_mm.models import (
    PartialChannelAttention,
    PartialNetBlock,
    PartialNetBlockV2,
    PartialSelfAttention,
)
from partialnet_mm.models.partialnet import ConvMLP

BLOCKS = {
    'v1': lambda **kwargs: PartialNetBlock(PartialChannelAttention(16), 16, **kwargs),
    'v2': lambda **kwargs: PartialNetBlockV2(PartialSelfAttention(16, 4), 16, **kwargs),
}
each_block = pytest.mark.parametrize('kind', list(BLOCKS))


def branches(block, x):
    """The mixed input, to which the last branch is added, and that branch."""
    if isinstance(block, PartialNetBlockV2):
        x = x + block.token_mixer(x)
        return x, block.spatial_attention(block.mlp(x))
    return x, block.spatial_attention(block.mlp(block.token_mixer(x)))


@each_block
@pytest.mark.parametrize('layer_scale', [0., 1e-2])
def test_residuals(kind, layer_scale, randomize_norms):
    block = randomize_norms(BLOCKS[kind](layer_scale_init_value=layer_scale)).eval()
    x = torch.randn(2, 16, 5, 6)
    shortcut, branch = branches(block, x)
    torch.testing.assert_close(block(x), shortcut + branch * (layer_scale or 1))
    names = dict(block.named_parameters())
    assert ('layer_scale' in names) == (layer_scale > 0)
    if layer_scale:
        assert torch.equal(names['layer_scale'], torch.full((16, 1, 1), layer_scale))


@each_block
def test_drop_path_drops_the_last_branch_of_whole_images(kind):
    block = BLOCKS[kind](drop_path_rate=0.25)
    block.eval()
    # The same image at each index of the batch: only the drawn paths differ.
    x = torch.randn(1, 16, 4, 4).expand(400, -1, -1, -1)
    with torch.no_grad():
        shortcut, branch = (values[0] for values in branches(block, x[:1]))
        block.drop_path.train()
        out = block(x)
    dropped = torch.tensor([torch.allclose(image, shortcut, atol=1e-6) for image in out])
    assert 0.18 < dropped.float().mean() < 0.32
    kept = (shortcut + branch / 0.75).expand(int((~dropped).sum()), -1, -1, -1)
    torch.testing.assert_close(out[~dropped], kept, rtol=1e-4, atol=1e-5)


@each_block
def test_drop_path_is_off_in_evaluation(kind):
    block = BLOCKS[kind](drop_path_rate=0.9).eval()
    x = torch.randn(8, 16, 4, 4)
    shortcut, branch = branches(block, x)
    torch.testing.assert_close(block(x), shortcut + branch)


@pytest.mark.parametrize('act, function', [('ReLU', F.relu), ('GELU', F.gelu)])
@pytest.mark.parametrize('training', [False, True])
def test_conv_mlp(act, function, training, randomize_norms):
    mlp = randomize_norms(ConvMLP(6, act_cfg=dict(type=act))).train(training)
    x = torch.randn(3, 6, 4, 5)
    hidden = F.batch_norm(F.conv2d(x, mlp.conv1.weight), mlp.norm.running_mean.clone(), mlp.norm.running_var.clone(),
                          mlp.norm.weight, mlp.norm.bias, training)
    assert hidden.shape == (3, 12, 4, 5)
    torch.testing.assert_close(mlp(x), F.conv2d(function(hidden), mlp.conv2.weight))
    assert [name for name, _ in mlp.named_parameters()] == ['conv1.weight', 'norm.weight', 'norm.bias', 'conv2.weight']
