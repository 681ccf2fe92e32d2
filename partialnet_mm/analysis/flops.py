# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Multiply-adds of a network by its modules, attention included, with PyTorch's FlopCounterMode."""
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_multiply_adds(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds of one forward pass of a whole batch of ``input_shape``, e.g. (B, C, H, W), in evaluation mode.

    Convolutions, matrix products and attention count; norms, activations and pooling do not. Where both operations
    count, FLOPs are twice as many. The paper counts PartialNet's merged form (Table 1); the trainable form has more.
    """
    parameter = next(module.parameters(), torch.empty(0))
    x = torch.zeros(*input_shape, dtype=parameter.dtype, device=parameter.device)
    return multiply_adds_by_layer(module, lambda: module(x))['']


def multiply_adds_by_layer(module: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Multiply-adds of each submodule, its own submodules included, while ``forward`` runs in evaluation mode.

    The names are those of ``named_modules``, '' for the sum; others without multiply-adds are left out. A submodule
    that is not called itself, such as a ``ModuleList``, has the sum of its children.
    """
    modes = {child: child.training for child in module.modules()}
    counts: dict[str, int] = {}
    starts: list[int] = []  # what was counted when each of the running submodules began
    handles = []
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:

            def leave(name: str) -> None:
                counts[name] = counts.get(name, 0) + counter.get_total_flops() - starts.pop()

            # FlopCounterMode counts by module, too, but in torch 2.1 it changes the outputs of modules for that.
            for name, child in module.named_modules():
                handles.append(child.register_forward_pre_hook(lambda *_: starts.append(counter.get_total_flops())))
                handles.append(child.register_forward_hook(lambda *_, name=name: leave(name)))
            forward()
    finally:
        for handle in handles:
            handle.remove()
        for child, mode in modes.items():
            child.training = mode

    def total(parent: nn.Module, name: str) -> int:
        if name in counts:
            return counts[name]
        return sum(total(child, f'{name}.{key}'.lstrip('.')) for key, child in parent.named_children())

    totals = {name: total(child, name) // 2 for name, child in module.named_modules()}
    totals[''] = counter.get_total_flops() // 2
    return {name: count for name, count in totals.items() if count or not name}


def _formulas() -> dict:
    """Formulas that FlopCounterMode lacks: products with a vector, and the fused attention on the CPU."""
    aten = torch.ops.aten
    formulas = {aten.mv: lambda matrix, vector, **_: 2 * matrix[0] * matrix[1],
                aten.addmv: lambda x, matrix, vector, **_: 2 * matrix[0] * matrix[1]}
    attention = getattr(aten, '_scaled_dot_product_flash_attention_for_cpu', None)
    if attention is not None:
        formulas[attention] = lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    return formulas
