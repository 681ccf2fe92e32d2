# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The MLP of a block, in 1x1 convolutions."""
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from torch import Tensor, nn

from ._folding import fold_norm_after
from ._layers import normalize
from .execution import compiles_for_cpu


class ConvMLP(nn.Module):
    """1x1 convolution to twice the width, norm, activation, 1x1 convolution back (Fig. 3).

    Args:
        channels: Channels of the input and of the output.
        norm_cfg: Norm of the hidden layer. Defaults to
            ``dict(type='BN')``.
        act_cfg: Activation. Defaults to ``dict(type='ReLU')``.
        out_channels: Channels of the output; None for those of
            the input. The merged form of PAT_sp takes one more. Defaults to
            None.
        deploy: Whether to build the merged form, in which the norm is
            part of the first convolution. Defaults to False.
    """

    expansion = 2

    def __init__(self,
                 channels: int,
                 norm_cfg: dict = dict(type='BN'),
                 act_cfg: dict = dict(type='ReLU'),
                 out_channels: int | None = None,
                 deploy: bool = False) -> None:
        super().__init__()
        self.hidden_channels = hidden = channels * self.expansion
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=deploy)
        self.norm = nn.Identity() if deploy else build_norm_layer(norm_cfg, hidden)[1]
        self.act = build_activation_layer(act_cfg)
        self.conv2 = nn.Conv2d(hidden, out_channels or channels, 1, bias=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C_out, H, W)."""
        if isinstance(self.norm, nn.Identity) and compiles_for_cpu(x):
            # The compiler has quicker kernels for these than for 1x1 convolutions, above all in channels_last.
            x = self.act(F.linear(x.permute(0, 2, 3, 1), self.conv1.weight.flatten(1), self.conv1.bias))
            return F.linear(x, self.conv2.weight.flatten(1), self.conv2.bias).permute(0, 3, 1, 2)
        return self.conv2(self.act(normalize(self.norm, self.conv1(x))))

    def switch_to_deploy(self) -> None:
        """Merges the norm into the first convolution; does nothing the second time."""
        if not isinstance(self.norm, nn.Identity):
            self.conv1 = fold_norm_after(self.conv1, self.norm, 'the norm of ConvMLP')
            self.norm = nn.Identity()
