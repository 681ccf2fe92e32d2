# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Multiply-adds of a network, attention included."""
from typing import Sequence, Tuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_multiply_adds(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Counts the multiply-adds of one forward pass in evaluation mode.

    Those of convolutions, matrix products and attention are counted: norms,
    activations and pooling are not. PartialNet's merged form is what the paper
    counts (Table 1); its trainable form has more.

    Args:
        module (nn.Module): Takes one tensor. Its mode, and that of each of its
            parts, is afterwards what it was.
        input_shape (Sequence[int]): Shape of that tensor, the batch included:
            (B, C, H, W) for a backbone.

    Returns:
        int: Multiply-adds of the whole batch, half of what is called FLOPs
        where both operations are counted.
    """
    parameter = next(module.parameters(), torch.empty(0))
    x = torch.zeros(*input_shape, dtype=parameter.dtype, device=parameter.device)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_extra_formulas()) as counter:
            module(x)
    finally:
        for part, mode in modes.items():
            part.training = mode
    return counter.get_total_flops() // 2


def _extra_formulas() -> dict:
    # torch has no formula for its fused attention on the CPU. Where it computes attention in
    # another way, that is counted already: as matrix products, or by a formula of its own.
    name = '_scaled_dot_product_flash_attention_for_cpu'
    operator = getattr(torch.ops.aten, name, None)
    return {} if operator is None else {operator: _attention_flops}


def _attention_flops(query: Tuple[int, ...], key: Tuple[int, ...], value: Tuple[int, ...], *args: object,
                     **kwargs: object) -> int:
    batch, heads, queries, dims = query
    keys, value_dims = value[-2:]
    return 2 * batch * heads * queries * keys * (dims + value_dims)
