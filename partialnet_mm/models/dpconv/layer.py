# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Dynamic partial convolution: a partial convolution that learns its split ratio."""
from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import kaiming_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from .._arguments import named_arguments
from ..patconv2d.layer import is_replaceable
from .split_gates import SplitGates

Size = int | Sequence[int]


class DPConv(nn.Module):
    """Dynamic partial convolution (Sec. 3.2 of the paper), with the arguments of a convolution.

    A dense convolution acts on the channels that its gates leave to it, the
    first C / G where they are in legal order, and all others pass: unchanged,
    or average-pooled where the convolution has a stride. Training and
    evaluation compute the same function of the same gates. In training the
    convolution covers all channels, with weights masked by
    :meth:`SplitGates.masks`, so that every gate gets its gradient; in
    evaluation only the channels and weights that are used are touched.

    Args:
        in_channels: Channels of the input, even.
        out_channels: Channels of the output, equal to ``in_channels``.
        kernel_size: Odd kernel size.
        stride: Defaults to 1.
        padding: Half of the dilated kernel, or
            'same'. Defaults to 0, which fits a kernel of 1 only.
        dilation: Defaults to 1.
        groups: Groups of the convolution that is replaced; DPConv's own
            is dense. Defaults to 1.
        bias: Whether the convolved channels have a bias. Defaults to
            True.
        padding_mode: As in ``nn.Conv2d``. Defaults to 'zeros'.
        split_ratio: Ratio to start at, 1 / 2^z. Defaults to 1/4.

    Raises:
        ValueError: If the widths differ or are odd, the kernel is even, the
            padding changes the size of the map, or the width has no such
            ratio.
        TypeError: If an argument is unknown.
    """

    # What mmcv's ConvModule reads from any convolution.
    transposed = False
    output_padding = (0, 0)

    @named_arguments
    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 kernel_size: Size,
                 stride: Size = 1,
                 padding: Size | str = 0,
                 dilation: Size = 1,
                 groups: int = 1,
                 bias: bool = True,
                 padding_mode: str = 'zeros',
                 split_ratio: float = 0.25) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(f'DPConv keeps the width, got in_channels={in_channels!r} and out_channels='
                             f"{out_channels!r}; conv_cfg=dict(type='DPConv') leaves such a layer a plain convolution")
        self.split_gates = SplitGates(in_channels, split_ratio)
        # After the gates: mmcv's fuse_conv_bn must find no norm behind a convolution that is only a part.
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, 1, bias, padding_mode)
        half = tuple(spread * (size - 1) // 2 for size, spread in zip(self.conv.kernel_size, self.conv.dilation))
        if any(size % 2 == 0 for size in self.conv.kernel_size):
            raise ValueError(f'kernel_size of DPConv must be odd, got {kernel_size!r}: the channels that pass could '
                             'not lie under the middle of the kernel')
        if self.conv.padding not in ('same', half):
            raise ValueError(f'padding of DPConv must be {half} for kernel_size={kernel_size!r} and dilation='
                             f'{dilation!r}, so that all channels keep the same places; got {padding!r}')
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
            # In the gates' precision, and only then in that of the map.
            return (convolved + passed * (1 - channels)[:, None, None]).to(x.dtype)
        used, _ = self.split_gates.partition()
        out = passed.clone()
        out[:, used] = self.conv._conv_forward(
            x[:, used], weight[used][:, used], None if bias is None else bias[used]).to(x.dtype)
        return out

    def extra_repr(self) -> str:
        return f'split_ratio={self.split_gates.split_ratio:g}'


@MODELS.register_module(name='DPConv')
def build_dpconv(in_channels: int,
                 out_channels: int,
                 kernel_size: Size,
                 stride: Size = 1,
                 padding: Size | str = 0,
                 dilation: Size = 1,
                 groups: int = 1,
                 bias: bool = True,
                 padding_mode: str = 'zeros',
                 split_ratio: float = 0.25) -> nn.Module:
    """What mmcv builds for ``conv_cfg=dict(type='DPConv', split_ratio=...)``.

    A network hands its ``conv_cfg`` to all of its convolutions. Those that mix
    places and keep the width become :class:`DPConv`, grouped and depthwise ones
    dense on the channels that they convolve; 1x1 convolutions and changes of
    width stay plain. A model in which all did is refused by
    :class:`SearchObjective`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel size.
        stride: Defaults to 1.
        padding: Defaults to 0.
        dilation: Defaults to 1.
        groups: Defaults to 1.
        bias: Defaults to True.
        padding_mode: Defaults to 'zeros'.
        split_ratio: Ratio to start at, 1 / 2^z. Defaults to 1/4.

    Returns:
        nn.Module: :class:`DPConv` or ``nn.Conv2d``.

    Raises:
        ValueError: If a layer would become DPConv and cannot.
    """
    arguments = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
    if is_replaceable(in_channels, out_channels, kernel_size):
        return DPConv(*arguments, split_ratio)
    return nn.Conv2d(*arguments)
