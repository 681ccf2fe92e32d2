# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PAT_ch with a learned split ratio."""
import torch
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn

from .._layers import normalize
from ..gates import GaussianGate
from .split_gates import Channels, SplitGates


@MODELS.register_module()
class DPConvChannelAttention(nn.Module):
    """PAT_ch whose split ratio is learned: the channels that are not convolved go to the channel attention.

    This goes beyond the paper, which searches with the identity instead of the attention (:class:`DPConv`). For given
    gates it computes what :class:`PartialChannelAttention` of their ratio does, in training and in evaluation;
    :func:`fix_ratios` gives that layer its weights. The masks of the attention are multilinear in the gates as those of
    the convolution are, see :class:`SplitGates`.

    Args:
        channels: Channels of the input and of the output, even.
        split_ratio: Ratio to start at, 1 / 2^z. Defaults to 1/4.
        norm_cfg: Batch norm of the attended channels and of their gate. Defaults to ``dict(type='BN')``.

    Raises:
        ValueError: If the width is odd or has no such ratio, or the norm is no batch norm.
    """

    def __init__(self, channels: int, split_ratio: float = 0.25, norm_cfg: dict = dict(type='BN')) -> None:
        super().__init__()
        self.split_gates = SplitGates(channels, split_ratio)
        # Before the convolution: mmcv's fuse_conv_bn takes a norm that follows for the convolution's own.
        self.norm = build_norm_layer(norm_cfg, channels)[1]
        if not isinstance(self.norm, _BatchNorm):
            raise ValueError("token mixer 'dpconv_ch' needs a norm that treats each channel by itself, so that it does "
                             f'not change with the split: BN or SyncBN; got norm_cfg={norm_cfg!r}')
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.gate = GaussianGate(channels, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        if self.training:
            channels, weights = self.split_gates.masks()
            convolved = self.conv._conv_forward(x, self.conv.weight * weights[:, :, None, None], None)
            # (1 - u_i) * (1 - u_j), where the product of two channels' u is their entry in the mask of weights.
            attended_weights = 1 - channels[:, None] - channels + weights
            gate = torch.func.functional_call(
                self.gate, {'conv.weight': self.gate.conv.weight * attended_weights[:, :, None, None]}, (x, ))
            attended = normalize(self.norm, x * gate)
            return (convolved + attended * (1 - channels)[:, None, None]).to(x.dtype)
        used, rest = self.split_gates.partition()
        out = torch.empty_like(x)
        out[:, used] = self.conv._conv_forward(x[:, used], self.conv.weight[used][:, used], None).to(x.dtype)
        if self.split_gates.split_ratio < 1:
            attended = x[:, rest]
            gate = torch.func.functional_call(self.gate, channels_of(self.gate, rest), (attended, ))
            attended = torch.func.functional_call(self.norm, channels_of(self.norm, rest), (attended * gate, ))
            out[:, rest] = attended.to(x.dtype)
        return out


def channels_of(module: nn.Module, channels: Channels) -> dict[str, Tensor]:
    """The state dict of a channel-wise module, or of a gate that mixes channels, for some of its channels only."""
    return {name: take_channels(tensor, channels) for name, tensor in module.state_dict(keep_vars=True).items()}


def take_channels(tensor: Tensor, channels: Channels) -> Tensor:
    """Some channels of a parameter or buffer: of its first dimension, and of the second of a convolution's weight."""
    if tensor.dim() == 0:  # a norm's count of batches
        return tensor
    tensor = tensor[channels]
    return tensor if tensor.dim() == 1 else tensor[:, channels]
