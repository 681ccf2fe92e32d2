# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The inference form: one block for all variants, and the merging of whole models."""
from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..checkpoint.layouts import OWN_RESIDUAL
from ._folding import conv_of, fold_after, fold_before, norm_affine, require_plain, weight_and_bias
from ._layers import PointwiseConv2d
from .patconv import MergedSpatialAttention


class MergedBlock(nn.Module):
    """A PartialNet block, v1 or v2, with all norms, PAT_sp and the layer scale folded into its convolutions.

    It computes what the trained block does in evaluation mode, for any batch,
    size, device and dtype, and with gradients. The MLP runs as two matrix
    products over all pixels, and feature maps stay in ``channels_last``.

    Args:
        block: The trained :class:`PartialNetBlock`. It stays as it is, and
            shares with this one what has no other form.

    Raises:
        TypeError: If a norm is no batch norm, or something sits on a layer
            that is folded.
        ValueError: If a norm has no running statistics.
    """

    @torch.no_grad()
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        mlp, attention = block.mlp, block.spatial_attention
        conv1 = require_plain(mlp.conv1, 'mlp.conv1')
        weight1, bias1 = weight_and_bias(conv1)
        weight1, bias1 = fold_after(weight1, bias1, norm_affine(mlp.norm, 'mlp.norm', len(weight1), weight1.device))
        self.token_mixer, affine = block.token_mixer, None
        if hasattr(block.token_mixer, 'merged'):
            self.token_mixer, affine = block.token_mixer.merged()
        if affine is not None:
            weight1, bias1 = fold_before(weight1, bias1, affine)

        weight2, bias2 = weight_and_bias(require_plain(mlp.conv2, 'mlp.conv2'))
        scale = None if block.layer_scale is None else block.layer_scale.double().flatten()
        if attention is not None:
            weight2, bias2, shift = attention.fold_into(weight2, bias2, scale)
        elif scale is not None:
            weight2, bias2 = fold_after(weight2, bias2, (scale, torch.zeros_like(scale)))
        self.mixer_residual = block.mixer_residual
        if hasattr(block, OWN_RESIDUAL):
            self.register_buffer(OWN_RESIDUAL, block.own_residual)
        self.mlp = nn.Sequential(OrderedDict(
            conv1=conv_of(PointwiseConv2d, conv1, weight1, bias1),
            act=mlp.act,
            conv2=conv_of(PointwiseConv2d, conv1, weight2, bias2)))
        self.spatial_attention = None if attention is None else MergedSpatialAttention(shift, conv1.weight.dtype)
        self.drop_path = block.drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        mixed = self.token_mixer(x)
        if self.mixer_residual:
            x = mixed = x + mixed
        mixed = self.mlp(mixed)
        if self.spatial_attention is not None:
            mixed = self.spatial_attention(mixed)
        # Summed with descending strides: torch.export does not follow other strides of a slice in symbolic sizes.
        return (x.permute(0, 2, 3, 1) + self.drop_path(mixed).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def merge_model(model: nn.Module) -> list[str]:
    """Switches every module of a model that has an inference form to it.

    Such a module has the method ``switch_to_deploy``, as PartialNet does; what
    is inside of it is merged by it. The model is in evaluation mode
    afterwards. Modules that are merged already stay as they are.

    Args:
        model: A classifier, detector, segmentor or backbone, its weights
            loaded.

    Returns:
        Names of the modules, e.g. ['backbone']; '' is the model itself.

    Raises:
        TypeError: If no module can be merged, or the norm of one cannot.
        ValueError: If a norm has no statistics to fold.
    """
    merged: list[str] = []
    for name, module in list(model.named_modules()):
        inside = any(other == '' or name.startswith(f'{other}.') for other in merged)
        if hasattr(module, 'switch_to_deploy') and not inside:
            module.switch_to_deploy()
            merged.append(name)
    if not merged:
        raise TypeError(f'{type(model).__name__} cannot be merged: none of its modules has switch_to_deploy()')
    model.eval()
    return merged
