# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Training in the folded form: the computation of a merged block, on weights that are folded at each step.

Batch norms in evaluation mode are affine maps, so that all that is folded at
inference can be folded in training, as a function of the parameters. Feature
maps then take fewer passes, and the backward pass keeps fewer of them: of a
block with PAT_ch its input, the convolved channels, the hidden layer of the
MLP and half of its output. The two functions below have backward passes of
their own for that. They cannot be differentiated twice.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from ._folding import require_no_hooks
from ._layers import hard_sigmoid
from .merged_block import fold_mlp
from .patconv import PartialChannelAttention


def rows(x: Tensor) -> Tensor:
    """(B, C, H, W) in ``channels_last``, or some channels of such a tensor, as a view (B * H * W, C)."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def rows_of_images(x: Tensor) -> Tensor:
    """The same as a view (B, H * W, C)."""
    return x.permute(0, 2, 3, 1).view(len(x), -1, x.shape[1])


def empty_map(like: Tensor, channels: int) -> Tensor:
    """A feature map of some channels in ``channels_last``, batch, size, dtype and device as another's."""
    return torch.empty(len(like), channels, *like.shape[2:], dtype=like.dtype, device=like.device,
                       memory_format=torch.channels_last)


class GatedInputConv(torch.autograd.Function):
    """1x1 convolution of two inputs joined along the channels, the second weighted by a gate per image and channel.

    The gate weights the columns of the weight, one weight per image, so that
    neither the joined nor the gated feature map is ever made.

    Inputs: (B, C_1, H, W); (B, C_2, H, W) and its gate (B, C_2, 1, 1), or None
    for both; weight (C_out, C_1 + C_2, 1, 1); bias (C_out, ). Output: (B,
    C_out, H, W). Feature maps are of one dtype and in ``channels_last``.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, first: Tensor, second: Tensor | None, gate: Tensor | None, weight: Tensor,
                bias: Tensor) -> Tensor:
        ctx.save_for_backward(first, second, gate, weight)
        of_first, of_second = GatedInputConv.weights(first, gate, weight)
        out = empty_map(first, len(weight))
        torch.addmm(bias.to(out.dtype), rows(first), of_first.t(), out=rows(out))
        if second is not None:
            rows_of_images(out).baddbmm_(rows_of_images(second), of_second.transpose(1, 2))
        return out

    @staticmethod
    def weights(first: Tensor, gate: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weight of the first input, (C_out, C_1), and those of the second in each image, (B, C_out, C_2)."""
        of_first, of_second = weight.flatten(1).tensor_split((first.shape[1], ), dim=1)
        if gate is None:
            return of_first.to(first.dtype), None
        return of_first.to(first.dtype), (of_second * gate.view(len(gate), 1, -1)).to(first.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second, gate, weight = ctx.saved_tensors
        of_first, of_second = GatedInputConv.weights(first, gate, weight)
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_bias = rows(grad).sum(0, dtype=weight.dtype)
        grad_of_first = (rows(grad).t() @ rows(first)).to(weight.dtype)
        grad_inputs = empty_map(first, weight.shape[1])
        if second is None:
            torch.mm(rows(grad), of_first, out=rows(grad_inputs))
            return grad_inputs, None, None, grad_of_first.view_as(weight), grad_bias
        # One product for both inputs: narrow ones are slower.
        of_both = torch.cat((of_first.expand(len(gate), -1, -1), of_second), dim=2)
        torch.bmm(rows_of_images(grad), of_both, out=rows_of_images(grad_inputs))
        of_images = (rows_of_images(grad).transpose(1, 2) @ rows_of_images(second)).to(weight.dtype)
        grad_gate = (of_images * weight[:, first.shape[1]:, 0, 0]).sum(1).to(gate.dtype).view_as(gate)
        grad_of_second = (of_images * gate.view(len(gate), 1, -1)).sum(0)
        grad_weight = torch.cat((grad_of_first, grad_of_second), dim=1).view_as(weight)
        return *grad_inputs.tensor_split((first.shape[1], ), dim=1), grad_gate, grad_weight, grad_bias


class GatedOutputConv(torch.autograd.Function):
    """1x1 convolution whose last output channel is the logit of a gate, which weights the first ones at each pixel.

    Inputs: (B, C_in, H, W); weight (C_out + 1, C_in, 1, 1); bias (C_out + 1,
    ); shift (C_gated, ), added after the gate. Output: (B, C_out, H, W).
    Feature maps are of one dtype and in ``channels_last``.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor) -> Tensor:
        of_gated, of_rest, of_logit = GatedOutputConv.divide(weight.flatten(1).to(x.dtype), len(shift))
        bias_of_gated, bias_of_rest, bias_of_logit = GatedOutputConv.divide(bias.to(x.dtype), len(shift))
        gated = torch.addmm(bias_of_gated, rows(x), of_gated.t())
        logit = torch.addmm(bias_of_logit, rows(x), of_logit.t())
        ctx.save_for_backward(x, weight, shift, gated, logit)
        out = empty_map(x, len(weight) - 1)
        torch.addcmul(shift.to(x.dtype), gated, hard_sigmoid(logit), out=rows(out)[:, :len(shift)])
        torch.addmm(bias_of_rest, rows(x), of_rest.t(), out=rows(out)[:, len(shift):])
        return out

    @staticmethod
    def divide(values: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Values of the gated channels, of the other channels and of the logit."""
        return values.split((count, len(values) - 1 - count, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight, shift, gated, logit = ctx.saved_tensors
        of_gated, of_rest, of_logit = GatedOutputConv.divide(weight.flatten(1).to(x.dtype), len(shift))
        grad = rows(grad.contiguous(memory_format=torch.channels_last))
        grad_shifted, grad_rest = grad.tensor_split((len(shift), ), dim=1)
        # Gated channels and logit side by side, for one product.
        grad_gated = grad.new_empty(len(grad), len(shift) + 1)
        torch.mul(grad_shifted, hard_sigmoid(logit), out=grad_gated[:, :-1])
        slope = ((logit > -3) & (logit < 3)).to(logit.dtype) / 6
        torch.mul((grad_shifted * gated).sum(1, keepdim=True), slope, out=grad_gated[:, -1:])
        grad_x = empty_map(x, x.shape[1])
        torch.mm(grad_rest, of_rest, out=rows(grad_x))
        rows(grad_x).addmm_(grad_gated, torch.cat((of_gated, of_logit)))

        def join(of_gated: Tensor, of_rest: Tensor) -> Tensor:
            return torch.cat((of_gated[:-1], of_rest, of_gated[-1:])).to(weight.dtype)

        grad_weight = join(grad_gated.t() @ rows(x), grad_rest.t() @ rows(x)).view_as(weight)
        grad_bias = join(grad_gated.sum(0, dtype=weight.dtype), grad_rest.sum(0, dtype=weight.dtype))
        return grad_x, grad_weight, grad_bias, grad_shifted.sum(0, dtype=shift.dtype)


class PatchConv(torch.autograd.Function):
    """Convolution with kernel = stride, as a matrix product over its patches, which are not kept.

    Inputs: (B, C_in, H, W); weight (C_out, C_in, S, S); bias (C_out, ).
    Output: (B, C_out, H // S, W // S) in ``channels_last``.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        stride = weight.shape[2]
        out = torch.empty(len(x), len(weight), x.shape[2] // stride, x.shape[3] // stride, dtype=x.dtype,
                          device=x.device, memory_format=torch.channels_last)
        torch.addmm(bias.to(x.dtype), PatchConv.patches(x, stride).reshape(len(rows(out)), -1),
                    PatchConv.matrix(weight).to(x.dtype).t(), out=rows(out))
        return out

    @staticmethod
    def patches(x: Tensor, stride: int) -> Tensor:
        """The whole patches as a view, (B, H // S, W // S, S, S, C)."""
        height, width = x.shape[2] // stride, x.shape[3] // stride
        x = x[:, :, :height * stride, :width * stride].permute(0, 2, 3, 1)
        return x.unflatten(2, (width, stride)).unflatten(1, (height, stride)).transpose(2, 3)

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        """(C_out, S * S * C_in), in the order of a patch."""
        return weight.permute(0, 2, 3, 1).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        stride = weight.shape[2]
        grad = rows(grad.contiguous(memory_format=torch.channels_last))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x)
            patches = PatchConv.patches(grad_x, stride)
            patches.copy_((grad @ PatchConv.matrix(weight).to(x.dtype)).view(patches.shape))
        grad_weight = grad.t() @ PatchConv.patches(x, stride).reshape(len(grad), -1)
        grad_weight = grad_weight.to(weight.dtype).view(len(weight), stride, stride, -1).permute(0, 3, 1, 2)
        return grad_x, grad_weight, grad.sum(0, dtype=weight.dtype)


def for_products(x: Tensor) -> Tensor:
    """A feature map in ``channels_last``, and in the dtype in which autocast multiplies matrices."""
    dtype = F.linear(x.new_empty(0, 1), x.new_empty(1, 1)).dtype
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def folded_downsample(layer: nn.Module, x: Tensor) -> Tensor:
    """What a :class:`Downsample` computes, its norm in evaluation mode, as one convolution.

    Args:
        layer: The layer.
        x: (B, C_in, H, W).

    Returns:
        (B, C_out, H // stride, W // stride), in ``channels_last``.

    Raises:
        TypeError: If its norm is no batch norm, or something sits on one of
            its children.
        ValueError: If its norm is in training mode, or has no running
            statistics.
    """
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = layer.fold(training=True)
    return PatchConv.apply(for_products(x), weight, bias)


def folded_block(block: nn.Module, x: Tensor) -> Tensor:
    """What a trained block computes, its batch norms in evaluation mode, in the folded form.

    The activation, stochastic depth and the token mixer, of PAT_ch its
    convolution and its gate, are called as modules. All else is folded.

    Args:
        block: A :class:`PartialNetBlock`.
        x: (B, C, H, W).

    Returns:
        (B, C, H, W), in ``channels_last``.

    Raises:
        TypeError: If a norm is no batch norm, or something sits on a layer
            that is folded.
        ValueError: If a batch norm is in training mode, or has no running
            statistics.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    mixer, affine, attended, gate = block.token_mixer, None, None, None
    divides = isinstance(mixer, PartialChannelAttention) and mixer.norm is not None and not mixer.attend_all
    with torch.autocast(x.device.type, enabled=False):
        if divides:
            require_no_hooks(mixer, 'token_mixer')
            affine = mixer.output_affine(training=True)
        folded = fold_mlp(block, affine, training=True)
    if divides:
        mixed, attended, gate = mixer.convolve_and_gate(x)
    else:
        mixed = mixer(x)
        if block.mixer_residual:
            x = mixed = x + mixed
    mixed = for_products(mixed)
    if divides:
        attended = attended.to(mixed.dtype)
    hidden = GatedInputConv.apply(mixed, attended, gate, folded.weight1, folded.bias1)
    hidden = for_products(block.mlp.act(hidden))
    if folded.shift is None:
        out = GatedInputConv.apply(hidden, None, None, folded.weight2, folded.bias2)
    else:
        out = GatedOutputConv.apply(hidden, folded.weight2, folded.bias2, folded.shift)
    return x + block.drop_path(out)
