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
        grad_first, grad_second, grad_gate = empty_map(first, first.shape[1]), None, None
        torch.mm(rows(grad), of_first, out=rows(grad_first))
        grad_weight = (rows(grad).t() @ rows(first)).to(weight.dtype)
        if second is not None:
            grad_second = empty_map(second, second.shape[1])
            torch.bmm(rows_of_images(grad), of_second, out=rows_of_images(grad_second))
            per_image = (rows_of_images(grad).transpose(1, 2) @ rows_of_images(second)).to(weight.dtype)
            grad_gate = (per_image * weight[:, first.shape[1]:, 0, 0]).sum(1).to(gate.dtype).view_as(gate)
            of_second = (per_image * gate.view(len(gate), 1, -1)).sum(0)
            grad_weight = torch.cat((grad_weight, of_second), dim=1)
        return grad_first, grad_second, grad_gate, grad_weight.view_as(weight), rows(grad).sum(0, dtype=weight.dtype)


class GatedOutputConv(torch.autograd.Function):
    """1x1 convolution whose last output channel is the logit of a gate, which weights the first ones at each pixel.

    Inputs: (B, C_in, H, W); weight (C_out + 1, C_in, 1, 1); bias (C_out + 1,
    ); shift (C_gated, ), added after the gate. Output: (B, C_out, H, W).
    Feature maps are of one dtype and in ``channels_last``.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor) -> Tensor:
        count = len(shift)
        of_gated, of_rest = GatedOutputConv.divide(weight.flatten(1).to(x.dtype), count)
        bias_of_gated, bias_of_rest = GatedOutputConv.divide(bias.to(x.dtype), count)
        gated = torch.addmm(bias_of_gated, rows(x), of_gated.t())
        ctx.save_for_backward(x, weight, shift, gated)
        out = empty_map(x, len(weight) - 1)
        torch.addcmul(shift.to(x.dtype), gated[:, :-1], hard_sigmoid(gated[:, -1:]), out=rows(out)[:, :count])
        torch.addmm(bias_of_rest, rows(x), of_rest.t(), out=rows(out)[:, count:])
        return out

    @staticmethod
    def divide(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Values of the gated channels and, after them, of the logit; and those of the other channels."""
        return torch.cat((values[:count], values[-1:])), values[count:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight, shift, gated = ctx.saved_tensors
        of_gated, of_rest = GatedOutputConv.divide(weight.flatten(1).to(x.dtype), len(shift))
        grad_gated_out, grad_rest = rows(grad.contiguous(memory_format=torch.channels_last)).tensor_split(
            (len(shift), ), dim=1)
        logit, grad_gated = gated[:, -1:], torch.empty_like(gated)
        torch.mul(grad_gated_out, hard_sigmoid(logit), out=grad_gated[:, :-1])
        slope = ((logit > -3) & (logit < 3)).to(logit.dtype) / 6
        grad_gated[:, -1:] = (grad_gated_out * gated[:, :-1]).sum(1, keepdim=True) * slope
        grad_x = empty_map(x, x.shape[1])
        torch.mm(grad_rest, of_rest, out=rows(grad_x))
        rows(grad_x).addmm_(grad_gated, of_gated)

        def join(of_gated: Tensor, of_rest: Tensor) -> Tensor:
            return torch.cat((of_gated[:-1], of_rest, of_gated[-1:])).to(weight.dtype)

        grad_weight = join(grad_gated.t() @ rows(x), grad_rest.t() @ rows(x)).view_as(weight)
        grad_bias = join(grad_gated.sum(0, dtype=weight.dtype), grad_rest.sum(0, dtype=weight.dtype))
        return grad_x, grad_weight, grad_bias, grad_gated_out.sum(0, dtype=shift.dtype)


def folded_forward(block: nn.Module, x: Tensor) -> Tensor:
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
    with torch.autocast(x.device.type, enabled=False):
        if splits := isinstance(mixer, PartialChannelAttention) and mixer.norm is not None and not mixer.attend_all:
            require_no_hooks(mixer, 'token_mixer')
            affine = mixer.output_affine(training=True)
        folded = fold_mlp(block, affine, training=True)
    if splits:
        mixed, attended, gate = mixer.convolve_and_gate(x)
        attended = attended.to(mixed.dtype)
    else:
        mixed = mixer(x)
        if block.mixer_residual:
            x = mixed = x + mixed
    mixed = mixed.contiguous(memory_format=torch.channels_last)
    hidden = GatedInputConv.apply(mixed, attended, gate, folded.weight1, folded.bias1)
    hidden = block.mlp.act(hidden).contiguous(memory_format=torch.channels_last)
    if folded.shift is None:
        out = GatedInputConv.apply(hidden, None, None, folded.weight2, folded.bias2)
    else:
        out = GatedOutputConv.apply(hidden, folded.weight2, folded.bias2, folded.shift)
    return x + block.drop_path(out)
