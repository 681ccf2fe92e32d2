# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Multiply-adds of a network, attention included."""
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_multiply_adds(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Counts the multiply-adds of one forward pass in evaluation mode.

    Those of convolutions, matrix products and attention are counted: norms,
    activations and pooling are not. PartialNet's merged form is what the paper
    counts (Table 1); its trainable form has more.

    Args:
        module: Takes one tensor. Its mode, and that of each of its
            parts, is afterwards what it was.
        input_shape: Shape of that tensor, the batch included:
            (B, C, H, W) for a backbone.

    Returns:
        int: Multiply-adds of the whole batch, half of what is called FLOPs
        where both operations are counted.
    """
    parameter = next(module.parameters(), torch.empty(0))
    x = torch.zeros(*input_shape, dtype=parameter.dtype, device=parameter.device)
    return sum(multiply_adds_by_layer(module, lambda: module(x)).values())


def multiply_adds_by_layer(module: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Counts the multiply-adds of each layer in one pass in evaluation mode.

    Args:
        module: Whose layers are told apart. Its mode, and that of
            each of its parts, is afterwards what it was.
        forward: Runs what is counted, with ``module`` or parts of
            it.

    Returns:
        dict[str, int]: For each submodule's name, in the order of
        ``named_modules``, the multiply-adds of its own operations: those of
        its children are theirs. The name '' has what belongs to no submodule.
        Layers without any are left out.
    """
    counts = {name: 0 for name, _ in module.named_modules()}
    # For each running layer: what had been counted at its start, and what its children have counted.
    running: list[tuple[int, list[int]]] = [(0, [])]
    modes = {part: part.training for part in module.modules()}
    module.eval()
    handles = []
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_extra_formulas()) as counter:

            def enter(*_: object) -> None:
                running.append((counter.get_total_flops(), []))

            def leave(name: str) -> None:
                start, children = running.pop()
                total = counter.get_total_flops() - start
                counts[name] += total - sum(children)
                running[-1][1].append(total)

            for name, part in module.named_modules():
                handles.append(part.register_forward_pre_hook(enter))
                handles.append(part.register_forward_hook(lambda *_, name=name: leave(name)))
            forward()
            counts[''] += counter.get_total_flops() - sum(running[0][1])
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes.items():
            part.training = mode
    return {name: count // 2 for name, count in counts.items() if count}


def _extra_formulas() -> dict:
    # torch has no formula for its fused attention on the CPU. Where it computes attention in
    # another way, that is counted already: as matrix products, or by a formula of its own.
    name = '_scaled_dot_product_flash_attention_for_cpu'
    operator = getattr(torch.ops.aten, name, None)
    return {} if operator is None else {operator: _attention_flops}


def _attention_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *args: object,
                     **kwargs: object) -> int:
    batch, heads, queries, dims = query
    keys, value_dims = value[-2:]
    return 2 * batch * heads * queries * keys * (dims + value_dims)
