# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PATConv as a replacement of convolutions: ``conv_cfg=dict(type='PATConv')`` in an OpenMMLab network."""
import inspect
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import kaiming_init
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn

from .._arguments import named_arguments
from .._folding import fold_after, local_norm, norm_affine, require_plain, weight_and_bias
from .._layers import check_statistics, is_compiling, normalize
from ..gates import GATES, build_gate
from ..patconv import SelfAttention, merged_gate, split_channels

#: Kinds of the convolution inside a PATConv2d.
CONVS = ('dense', 'depthwise')

Size = int | Sequence[int]


class PATConv2d(nn.Module):
    """Partial attention convolution with the arguments of a convolution (Eq. (1), Tables 5 and 6 of the paper).

    The first channels are convolved, the others are weighted by a channel gate and normalized. The width stays, and the
    feature maps have the sizes of ``nn.Conv2d``: where that skips pixels, the attended channels are average-pooled,
    without padding; where it pads less than half its kernel, they are cropped to the middle. The gate sees the pooled
    feature map.

    Its convolution starts from Kaiming's normal values, as that of mmcv's ConvModule, and follows the ``init_cfg`` of
    the network that it is in.

    Args:
        in_channels, out_channels, kernel_size, dilation, padding_mode: As in ``nn.Conv2d``, with equal widths and an
            odd kernel.
        stride: 1 or 2. Defaults to 1.
        padding: At most half of the dilated kernel, or 'same' or 'valid'. Defaults to 0.
        groups: Groups of the convolution that is replaced; PATConv's own follow from ``conv``. Defaults to 1.
        bias: Whether the convolved channels have a bias; the attended ones have their norm's. Defaults to True.
        split_ratio: Fraction of the channels that is convolved, in (0, 1], a whole number of channels. Defaults to 1/4.
        gate: See :func:`build_gate`: 'gaussian' (PAT_ch), 'srm' or 'se' (Table 12), 'eca', 'cbam', or dict(type=...);
            'self' for the self-attention of PAT_sf (stage 4 of the official ConvNeXt), or 'none' for FasterNet's
            partial convolution, whose other channels pass through unchanged. Defaults to 'gaussian'.
        conv: 'dense' (the paper's) or 'depthwise'. Defaults to 'dense'.
        norm_cfg: Norm of the attended channels and of their gate. Defaults to ``dict(type='BN')``.
        norm_eval: Whether its batch norms stay in evaluation mode while training, as for 2 images per GPU in a network
            that has no such option. Without the statistics of a checkpoint, the first training step logs a warning.
            Defaults to False.
        deploy: Whether to build the merged form, for checkpoints written after :meth:`switch_to_deploy`. Defaults to
            False.

    Raises:
        ValueError: If an argument is outside its range, or a name unknown.
        TypeError: If an argument is unknown.
    """

    # Attributes that mmcv's ConvModule reads from any convolution.
    transposed = False
    output_padding = (0, 0)

    @named_arguments
    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1,
                 padding: Size | str = 0, dilation: Size = 1, groups: int = 1, bias: bool = True,
                 padding_mode: str = 'zeros', split_ratio: float = 0.25, gate: str | dict = 'gaussian',
                 conv: str = 'dense', norm_cfg: dict = dict(type='BN'), norm_eval: bool = False,
                 deploy: bool = False) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(f'PATConv2d keeps the width, got in_channels={in_channels!r} and out_channels='
                             f"{out_channels!r}; conv_cfg=dict(type='PATConv') leaves such a layer a plain convolution")
        if isinstance(gate, str) and gate not in (*GATES, 'self', 'none'):
            raise ValueError(f'gate of PATConv2d must be one of {(*GATES, "self", "none")} or dict(type=...), '
                             f'got {gate!r}')
        if conv not in CONVS:
            raise ValueError(f'conv of PATConv2d must be one of {CONVS}, got {conv!r}')
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding_mode, self.norm_eval = padding_mode, norm_eval
        self._statistics_checked = False
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(f'kernel_size of PATConv2d must be odd, got {kernel_size!r}: the attended channels could '
                             'not lie under the middle of the kernel')
        if any(step not in (1, 2) for step in self.stride):
            raise ValueError(f'stride of PATConv2d must be 1 or 2, got {stride!r}')
        half = [spread * (size - 1) // 2 for size, spread in zip(self.kernel_size, self.dilation)]
        if isinstance(padding, str) and padding not in ('same', 'valid'):
            raise ValueError(f"padding of PATConv2d must be sizes, 'same' or 'valid', got {padding!r}")
        self.padding = tuple(half) if padding == 'same' else _pair(0 if padding == 'valid' else padding)
        #: Rows and columns at each border of the input that lie under no middle of the kernel.
        self.margin = tuple(most - given for most, given in zip(half, self.padding))
        if min(self.margin) < 0:
            raise ValueError(f'padding of PATConv2d must be at most half the kernel, {tuple(half)} for kernel_size='
                             f'{kernel_size!r} and dilation={dilation!r}, got {padding!r}')
        self.split_sizes = split_channels(in_channels, split_ratio)
        conv_channels, attended_channels = self.split_sizes
        if abs(in_channels * split_ratio - conv_channels) > 1e-6:
            raise ValueError(f'split_ratio={split_ratio!r} does not divide {in_channels} channels: '
                             f'{in_channels * split_ratio:g} is no number of channels to convolve')

        # The norm comes before the convolution: mmcv's fuse_conv_bn takes one that follows for the convolution's own.
        self.norm = self.gate = self.scale = self.shift = self.attention = None
        if deploy:
            norm_cfg = local_norm(norm_cfg)
        gated = attended_channels > 0 and gate not in ('self', 'none')
        if gated:
            self.norm = build_norm_layer(norm_cfg, attended_channels)[1]
        self.conv = nn.Conv2d(conv_channels, conv_channels, self.kernel_size, self.stride, self.padding, self.dilation,
                              1 if conv == 'dense' else conv_channels, bias, padding_mode)
        kaiming_init(self.conv)
        if gated:
            self.gate = build_gate(gate, attended_channels, norm_cfg)
        elif attended_channels and gate == 'self':
            self.attention = SelfAttention(attended_channels)
        if deploy:
            self.switch_to_deploy()
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to what ``nn.Conv2d`` would: (B, C, H', W')."""
        if not self.split_sizes[1]:
            return self.conv(x)
        # A network with norm_eval of its own sets these norms, too.
        if self.norm is not None and self.training and not self.norm.training and not self._statistics_checked \
                and not is_compiling():
            self._statistics_checked = check_statistics(self._norms(), 'PATConv', '')
        convolved, attended = x.split(self.split_sizes, dim=1)
        return torch.cat((self.conv(convolved), self._attend(self._sample(attended))), dim=1)

    def _sample(self, x: Tensor) -> Tensor:
        """Brings the attended channels to the size of the convolved ones."""
        top, left = self.margin
        if top or left:
            x = x[..., top:x.shape[2] - top, left:x.shape[3] - left]
        # At the last row or column of an odd size, ceil_mode averages the pixels inside the feature map.
        return x if self.stride == (1, 1) else F.avg_pool2d(x, self.stride, ceil_mode=True)

    def _attend(self, x: Tensor) -> Tensor:
        if self.attention is not None:
            x = self.attention(x)
        if self.shift is not None:
            scale = self.scale if self.gate is None else self.scale * self.gate(x)
            return torch.addcmul(self.shift, x, scale)
        return x if self.gate is None else normalize(self.norm, x * self.gate(x))

    def train(self, mode: bool = True) -> 'PATConv2d':
        """Sets the mode, of the norms only without ``norm_eval``."""
        super().train(mode)
        if self.norm_eval:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> Iterator[nn.Module]:
        return (module for module in self.modules() if isinstance(module, _BatchNorm))

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Merges the gate's norm into its convolution, and the norm of the attended channels into a scale and a shift.

        Raises:
            TypeError: If the norm is not a batch norm.
            ValueError: If it has no statistics.
        """
        if self.norm is None:
            return
        affine = norm_affine(self.norm, 'the norm of PATConv2d', self.split_sizes[1])
        self.gate = merged_gate(self.gate)
        self._set_affine(*affine)
        self.norm = None

    @torch.no_grad()
    def merge_norm(self, norm: nn.Module) -> None:
        """Switches to the merged form and folds the batch norm that follows this layer, over all channels, into it.

        Exact, as that norm is one more scale and shift of each channel. The caller drops the norm, see
        :func:`merge_following_norms`.

        Raises:
            TypeError: If it is not a batch norm.
            ValueError: If it has no statistics.
        """
        require_plain(self.conv, 'the convolution of PATConv2d')
        affine = norm_affine(norm, 'the norm after PATConv2d', self.out_channels)
        convolved, (scale, shift) = zip(*(value.split(self.split_sizes) for value in affine))
        self.switch_to_deploy()
        weight, bias = fold_after(*weight_and_bias(self.conv), convolved)
        self.conv.weight.copy_(weight)
        self.conv.bias = nn.Parameter(bias.to(self.conv.weight))
        if self.shift is not None:
            shift = self.shift.double().flatten() * scale + shift
            scale = self.scale.double().flatten() * scale
        self._set_affine(scale, shift)

    def _set_affine(self, scale: Tensor, shift: Tensor) -> None:
        self.scale = nn.Parameter(scale.view(1, -1, 1, 1).to(self.conv.weight))
        self.shift = nn.Parameter(shift.view(1, -1, 1, 1).to(self.conv.weight))

    def extra_repr(self) -> str:
        return (f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
                f'padding={self.padding}, dilation={self.dilation}, split_sizes={self.split_sizes}')


@MODELS.register_module(name='PATConv')
def build_patconv(*args: object, **kwargs: object) -> nn.Module:
    """Builds the layers of a network with ``conv_cfg=dict(type='PATConv', ...)``.

    :class:`PATConv2d` has the arguments and checks them. It replaces the convolutions that are larger than 1x1 and keep
    the width; all others stay plain. :func:`require_patconv` finds networks where all stay plain.
    """
    return conv_like(PATConv2d, *args, **kwargs)


def conv_like(layer_type: Callable[..., nn.Module], in_channels: int, out_channels: int, kernel_size: Size,
              *args: object, **kwargs: object) -> nn.Module:
    """A layer in place of a convolution where :func:`is_replaceable`, otherwise the ``nn.Conv2d``."""
    known = inspect.signature(layer_type).parameters
    if is_replaceable(in_channels, out_channels, kernel_size) or any(name not in known for name in kwargs):
        return layer_type(in_channels, out_channels, kernel_size, *args, **kwargs)  # raises if one is unknown
    plain = inspect.signature(nn.Conv2d).parameters
    return nn.Conv2d(in_channels, out_channels, kernel_size, *args,
                     **{name: value for name, value in kwargs.items() if name in plain})


def is_replaceable(in_channels: int, out_channels: int, kernel_size: Size) -> bool:
    """Whether PATConv replaces a convolution: one that mixes pixels and keeps the width."""
    return in_channels == out_channels and _pair(kernel_size) != (1, 1)


def _pair(size: Size) -> tuple[int, int]:
    return tuple(to_2tuple(size))


def merge_following_norms(network: nn.Module) -> int:
    """Merges every :class:`PATConv2d` with the batch norm that follows it, for the fastest inference.

    The norm that follows is the next child of the same module, as in mmcv's ``fuse_conv_bn``, which does the same for
    plain convolutions. The result computes what the network did in evaluation mode; it has no ``deploy=True`` form to
    load a checkpoint into.

    Args:
        network: Any network.

    Returns:
        How many norms were merged.
    """
    merged = 0
    for parent in network.modules():
        if isinstance(parent, ConvModule) and 'conv-norm' not in '-'.join(parent.order):
            continue  # its children are conv and norm, whatever the order in which it calls them
        children = list(parent.named_children())
        for (_, layer), (name, norm) in zip(children, children[1:]):
            if (isinstance(layer, PATConv2d) and isinstance(norm, _BatchNorm)
                    and norm.num_features == layer.out_channels):
                layer.merge_norm(norm)
                setattr(parent, name, nn.Identity())
                merged += 1
    return merged
