# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The embedding and merging layers before each stage."""
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from ._folding import fold_norm_after
from ._layers import normalize
from .execution import runs_on_cpu


class Downsample(nn.Module):
    """Convolution with kernel = stride, then a norm: the stem and the merging layers (Fig. 3).

    Rows and columns that fill no whole kernel are left out, so any size works.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Kernel and stride: 4 for the stem, 2 for merging.
        norm_cfg: Norm. Defaults to ``dict(type='BN')``.
        deploy: Whether to build the merged form. Defaults to False.
    """

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 stride: int,
                 norm_cfg: dict = dict(type='BN'),
                 deploy: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, stride, stride, bias=deploy)
        self.norm = nn.Identity() if deploy else build_norm_layer(norm_cfg, out_channels)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C_in, H, W) to (B, C_out, H // stride, W // stride)."""
        # PyTorch's convolution rearranges the weights at each call, a product needs the map rearranged.
        # Sizes are asked for last: compilers and exporters, which get no further, would take them for constants.
        if (isinstance(self.norm, nn.Identity) and runs_on_cpu(x) and len(x) == 1
                and 2 * x.numel() <= self.conv.weight.numel()):
            return self._multiply(x)
        return normalize(self.norm, self.conv(x))

    def _multiply(self, x: Tensor) -> Tensor:
        size = self.conv.stride[0]
        height, width = x.shape[2] // size, x.shape[3] // size
        patches = F.pixel_unshuffle(x[:, :, :height * size, :width * size], size).flatten(2).transpose(1, 2)
        tokens = F.linear(patches, self.conv.weight.flatten(1), self.conv.bias)
        return tokens.view(1, height, width, -1).permute(0, 3, 1, 2)

    def switch_to_deploy(self) -> None:
        """Merges the norm into the convolution; does nothing the second time."""
        if not isinstance(self.norm, nn.Identity):
            self.conv = fold_norm_after(self.conv, self.norm, 'the norm of Downsample')
            self.norm = nn.Identity()
