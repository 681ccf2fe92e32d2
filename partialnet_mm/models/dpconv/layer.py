# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Dynamic partial convolution: a partial convolution that learns its split ratio."""
import torch.nn.functional as F
from mmengine.model import kaiming_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from .._arguments import named_arguments
from ..patconv2d.layer import Size, conv_like
from .split_gates import SplitGates


class DPConv(nn.Module):
    """Dynamic partial convolution (Sec. 3.2 of the paper), with the arguments of a convolution.

    A dense convolution acts on the channels that its gates select, the first C / G where they are in legal order, and
    all others pass: unchanged, or average-pooled where the convolution has a stride. Training and evaluation compute
    the same function of the same gates. In training the convolution covers all channels, with weights masked by
    :meth:`SplitGates.masks`, so that every gate gets its gradient; in evaluation only the channels and weights that are
    used are touched.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, bias, padding_mode: As in ``nn.Conv2d``, with equal,
            even widths and an odd kernel. The bias is that of the convolved channels.
        padding: Half of the dilated kernel, or 'same'. Defaults to 0, which fits a kernel of 1 only.
        groups: Groups of the convolution that is replaced; DPConv's own is dense. Defaults to 1.
        split_ratio: Ratio to start at, 1 / 2^z. Defaults to 1/4.

    Raises:
        ValueError: If the widths differ or are odd, the kernel is even, the padding changes the size of the feature
            map, or the width has no such ratio.
        TypeError: If an argument is unknown.
    """

    # Attributes that mmcv's ConvModule reads from any convolution.
    transposed = False
    output_padding = (0, 0)

    @named_arguments
    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1,
                 padding: Size | str = 0, dilation: Size = 1, groups: int = 1, bias: bool = True,
                 padding_mode: str = 'zeros', split_ratio: float = 0.25) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(f'DPConv keeps the width, got in_channels={in_channels!r} and out_channels='
                             f"{out_channels!r}; conv_cfg=dict(type='DPConv') leaves such a layer a plain convolution")
        self.split_gates = SplitGates(in_channels, split_ratio)
        # Last: mmcv's fuse_conv_bn folds a norm that follows a convolution, and this one computes some channels only.
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, 1, bias, padding_mode)
        half = tuple(spread * (size - 1) // 2 for size, spread in zip(self.conv.kernel_size, self.conv.dilation))
        if any(size % 2 == 0 for size in self.conv.kernel_size):
            raise ValueError(f'kernel_size of DPConv must be odd, got {kernel_size!r}: the channels that pass could '
                             'not lie under the middle of the kernel')
        if self.conv.padding not in ('same', half):
            raise ValueError(f'padding of DPConv must be {half} for kernel_size={kernel_size!r} and dilation='
                             f'{dilation!r}, so that all channels keep their positions; got {padding!r}')
        kaiming_init(self.conv)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding = self.conv.kernel_size, self.conv.stride, self.conv.padding
        self.dilation, self.padding_mode = self.conv.dilation, padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to what ``nn.Conv2d`` would: (B, C, H', W')."""
        weight, bias = self.conv.weight, self.conv.bias
        passed = x if self.stride == (1, 1) else F.avg_pool2d(x, self.stride, ceil_mode=True)
        if self.training:
            channels, weights = self.split_gates.masks()
            convolved = self.conv._conv_forward(
                x, weight * weights[:, :, None, None], None if bias is None else bias * channels)
            # The sum is computed in the gates' precision, and then cast to that of the feature map.
            return (convolved + passed * (1 - channels)[:, None, None]).to(x.dtype)
        used, _ = self.split_gates.partition()
        out = passed.clone()
        out[:, used] = self.conv._conv_forward(
            x[:, used], weight[used][:, used], None if bias is None else bias[used]).to(x.dtype)
        return out

    def extra_repr(self) -> str:
        return f'split_ratio={self.split_gates.split_ratio:g}'


@MODELS.register_module(name='DPConv')
def build_dpconv(*args: object, **kwargs: object) -> nn.Module:
    """Builds the layers of a network with ``conv_cfg=dict(type='DPConv', split_ratio=...)``.

    :class:`DPConv` has the arguments and checks them. It replaces the convolutions that are larger than 1x1 and keep
    the width, grouped and depthwise ones too; all others stay plain. :class:`SearchObjective` refuses a model in which
    all stay plain.
    """
    return conv_like(DPConv, *args, **kwargs)
