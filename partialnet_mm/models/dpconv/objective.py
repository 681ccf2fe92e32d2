# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The objective of a search for split ratios: the task's loss, weighed by the budget (Eq. (9) of the paper)."""
from numbers import Real

import torch
from torch import Tensor, nn

from .split_gates import SplitGates, is_legal

Losses = dict[str, Tensor | list[Tensor]]


class SearchObjective(nn.Module):
    """``L_task * (Z / R)^w + lambda * L_gate`` over all DPConv layers of a network (Eq. (6) to (9)).

    R is the layers' cost, Z = sum(C^2) / kappa the budget; w is ``cost_exponent`` where R > Z and otherwise 0, so that
    the factor exceeds 1 exactly when the network is over its budget. L_gate is the order penalty of
    :meth:`SplitGates.order_penalty`.

    For the first epochs the ratios may stay fixed while the weights learn. :class:`RatioHook` sets the epoch, which
    checkpoints contain.

    Args:
        network: Holds the layers. The objective becomes a module of it and adds no weights.
        kappa: Divides the cost of convolutions of all channels: 4 is the cost of a split ratio of 1/4 everywhere. At
            least 1. Defaults to 4.
        cost_exponent: w, negative. Defaults to -0.01, as in the official files.
        order_weight: lambda. Defaults to 0.9.
        warmup_epochs: Epochs with fixed ratios. Defaults to 0.

    Raises:
        ValueError: If an argument is outside its range, the network has no DPConv, or the budget is below its least
            cost.
    """

    def __init__(self, network: nn.Module, kappa: float = 4., cost_exponent: float = -0.01,
                 order_weight: float = 0.9, warmup_epochs: int = 0) -> None:
        super().__init__()
        kappa = _checked_kappa('kappa', kappa)
        if not isinstance(cost_exponent, Real) or not cost_exponent < 0:
            raise ValueError(f'cost_exponent must be negative, got {cost_exponent!r}')
        if not isinstance(order_weight, Real) or not order_weight >= 0:
            raise ValueError(f'order_weight must be 0 or positive, got {order_weight!r}')
        if not isinstance(warmup_epochs, int) or warmup_epochs < 0:
            raise ValueError(f'warmup_epochs must be 0 or a positive int, got {warmup_epochs!r}')
        # A plain dict, so that the network's state holds the gates once.
        self.layers = {name.rpartition('.')[0]: module for name, module in network.named_modules()
                       if isinstance(module, SplitGates)}
        if not self.layers:
            raise ValueError(f"{type(network).__name__} has no DPConv to search: a PartialNet takes token_mixers="
                             "'dpconv' or 'dpconv_ch', other networks conv_cfg=dict(type='DPConv') where they have "
                             'convolutions that keep the width and are larger than 1x1')
        full_cost = sum(gates.channels**2 for gates in self.layers.values())
        least_cost = sum(gates.channels * gates.odd_factor for gates in self.layers.values())
        if full_cost < kappa * least_cost:
            raise ValueError(f'kappa={kappa!r} is a budget below the least cost of the {len(self.layers)} layers; '
                             f'allowed is up to {full_cost / least_cost:g}')
        self.kappa = kappa
        self.budget = full_cost / kappa
        self.cost_exponent = cost_exponent
        self.order_weight = order_weight
        self.warmup_epochs = warmup_epochs
        self.register_buffer('epoch', torch.tensor(-1))

    def start_at_budget(self, kappa: float | None = None) -> None:
        """Sets all layers to the largest ratio that a budget allows them all; to their least where that is larger.

        ``kappa`` is the budget, at least 1; None, the objective's own, is the choice of the paper's author. With 1, all
        channels, a search begins with layers that are trained and over budget, and decides where to close them.
        """
        kappa = self.kappa if kappa is None else _checked_kappa('start_kappa', kappa)
        for gates in self.layers.values():
            ratios = [0.5**closed for closed in range(len(gates.t) + 1)]
            gates.start_at(next((ratio for ratio in ratios if ratio * kappa <= 1), ratios[-1]))

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that begins, from 0; :class:`RatioHook` calls it."""
        self.epoch.fill_(epoch)

    def prepare(self) -> None:
        """Brings the layers into the state of this epoch, which must be known; call it before the forward pass."""
        searching = True
        if self.warmup_epochs:
            if self.epoch < 0:
                raise RuntimeError(f'warmup_epochs={self.warmup_epochs} needs to know the epoch: add custom_hooks = '
                                   "[dict(type='RatioHook')] to the config, or set warmup_epochs=0")
            searching = bool(self.epoch >= self.warmup_epochs)
        for gates in self.layers.values():
            gates.searching = searching
            gates.clamp()

    def terms(self) -> dict[str, Tensor]:
        """The terms of the objective that depend on the gates alone, as scalars.

        ``cost_ratio`` is R / Z, above 1 over budget; ``cost_factor`` multiplies the task's losses; ``order_penalty`` is
        L_gate.
        """
        layers = self.layers.values()
        cost = torch.stack([gates.cost() for gates in layers]).sum()
        ratio = cost / self.budget
        # Within the budget there is neither a factor nor a gradient, at the budget itself neither.
        factor = torch.where(cost > self.budget, ratio**-self.cost_exponent, torch.ones_like(ratio))
        penalty = torch.stack([gates.order_penalty() for gates in layers]).sum()
        return dict(cost_ratio=ratio, cost_factor=factor, order_penalty=penalty)

    def weigh(self, losses: Losses) -> Losses:
        """Turns the task's losses into the objective.

        Args:
            losses: The output of a head: values with 'loss' in their name are summed and minimized, others are only
                logged.

        Returns:
            Each loss multiplied by the factor, under its own name, or 'loss_task' for 'loss', the name of the sum;
            ``loss_order``, the weighted order penalty; and, only for the log, ``task``, the sum of the original losses,
            the :meth:`terms`, and the head's other values.
        """
        terms = self.terms()
        weighed: Losses = {}
        task = terms['cost_factor'].new_zeros(())
        for name, value in losses.items():
            if 'loss' not in name:
                weighed[name] = value
                continue
            values = value if isinstance(value, (list, tuple)) else [value]
            task = task + sum(value.detach().mean() for value in values)
            values = [value * terms['cost_factor'] for value in values]
            weighed['loss_task' if name == 'loss' else name] = values if isinstance(value, (list, tuple)) else values[0]
        # While the ratios are fixed the gates have a gradient of zero: distributed training waits for a gradient of
        # every parameter.
        searching = next(iter(self.layers.values())).searching
        weighed['loss_order'] = terms['order_penalty'] * (self.order_weight if searching else 0.)
        weighed.update(task=task, **{name: value.detach() for name, value in terms.items()})
        return weighed

    @torch.no_grad()
    def report(self) -> dict:
        """The ratios as plain data, for logs and checkpoints.

        ``cost`` and ``budget`` are R and Z; ``split_ratio`` holds the ratios by the layers' names; ``illegal`` names
        the layers whose gates are out of order.
        """
        return dict(kappa=self.kappa, cost=sum(float(gates.cost()) for gates in self.layers.values()),
                    budget=self.budget, split_ratio={name: gates.split_ratio for name, gates in self.layers.items()},
                    illegal=[name for name, gates in self.layers.items() if not is_legal(gates.t)])


def _checked_kappa(name: str, kappa: float) -> float:
    if not isinstance(kappa, Real) or not kappa >= 1:
        raise ValueError(f'{name} must be at least 1, the budget of convolutions of all channels; got {kappa!r}')
    return float(kappa)
