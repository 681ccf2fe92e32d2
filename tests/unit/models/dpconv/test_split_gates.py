# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The gates of DPConv against the Kronecker products that define them."""
import functools
import itertools

import pytest
import torch

from partialnet_mm.models import PartialNet, SplitGates
from partialnet_mm.models.dpconv.split_gates import is_legal

WIDTHS = {2: (1, 1), 6: (3, 1), 8: (1, 3), 12: (3, 2), 40: (5, 3)}  # width: odd factor, number of gates


def gates_of(channels, binary, magnitude=0.5):
    """Gates of given values 0 and 1."""
    gates = SplitGates(channels, 1).double()
    with torch.no_grad():
        gates.t.copy_(torch.tensor(binary) * 2 * magnitude - magnitude)
    return gates


def kronecker(blocks, odd):
    return functools.reduce(torch.kron, [*blocks, torch.ones(odd, odd, dtype=torch.float64)])


def relation(binary, odd):
    """The paper's U (Eq. (2), (3)): 2 x 2 ones for open gates, identities for closed ones."""
    ones, identity = torch.ones(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    return kronecker([ones if g else identity for g in binary], odd)


def all_gates():
    for channels, (odd, count) in WIDTHS.items():
        for binary in itertools.product((0, 1), repeat=count):
            yield pytest.param(channels, odd, binary, id=f'{channels}-{"".join(map(str, binary))}')


@pytest.mark.parametrize('channels, odd, binary', all_gates())
def test_masks_and_cost_are_those_of_the_definition(channels, odd, binary):
    gates = gates_of(channels, binary)
    assert (gates.odd_factor, len(gates.t)) == WIDTHS[channels]
    u = relation(binary, odd)
    # The first block: what channel 0 is related to.
    first = u[0]
    channel_mask, weight_mask = gates.masks()
    assert torch.equal(channel_mask, first)
    assert torch.equal(weight_mask, u * torch.outer(first, first))
    assert gates.cost().item() == u.sum().item()

    groups = 2**binary.count(0)
    assert gates.split_ratio == 1 / groups and first.sum() == channels // groups
    used, rest = gates.partition()
    both = torch.arange(channels)
    assert torch.equal(both[used], first.nonzero().flatten())
    assert torch.equal(both[rest], (first == 0).nonzero().flatten())

    legal = list(binary) == sorted(binary)
    assert is_legal(gates.t) == legal
    assert isinstance(used, slice) == legal
    if legal:  # G blocks of C / G channels, of which the first is used
        assert torch.equal(u, torch.block_diag(*[torch.ones(channels // groups, channels // groups)] * groups).double())
        assert torch.equal(first, (both < channels // groups).double())


@pytest.mark.parametrize('channels, odd, binary', all_gates())
def test_gradients_are_those_of_the_definition(channels, odd, binary):
    """Each entry of the masks and the cost changes by its gradient when a gate is flipped or, for the cost, moved."""
    gates = gates_of(channels, binary)
    weights = torch.randn(channels, channels, dtype=torch.float64)
    (gates.masks()[1] * weights).sum().backward()
    mask_gradient, gates.t.grad = gates.t.grad, None
    gates.cost().backward()
    for k in range(len(binary)):
        changed = []
        for value in (0, 1):
            u = relation((*binary[:k], value, *binary[k + 1:]), odd)
            changed.append(((u * torch.outer(u[0], u[0]) * weights).sum(), u.sum()))
        assert mask_gradient[k].item() == pytest.approx((changed[1][0] - changed[0][0]).item(), abs=1e-9)
        assert gates.t.grad[k].item() == pytest.approx((changed[1][1] - changed[0][1]).item())
        assert gates.t.grad[k] > 0  # to open a gate always costs


def test_gates_beyond_one_get_no_gradient_until_they_are_brought_back():
    gates = SplitGates(16, 1)
    with torch.no_grad():
        gates.t.copy_(torch.tensor([-1.01, -1., 1., 1.01]))
    gates.cost().backward()
    assert (gates.t.grad != 0).tolist() == [False, True, True, False]
    gates.clamp()
    assert gates.t.tolist() == [-1, -1, 1, 1]
    gates.t.grad = None
    gates.cost().backward()
    assert (gates.t.grad != 0).all()


def test_fixed_gates_get_no_gradient_and_keep_their_values():
    gates = SplitGates(16)
    gates.searching = False
    assert not gates.cost().requires_grad and not any(mask.requires_grad for mask in gates.masks())
    searching = SplitGates(16)
    assert all(torch.equal(a, b) for a, b in zip(gates.masks(), searching.masks()))
    assert gates.order_penalty().requires_grad


@pytest.mark.parametrize('t, penalty, gradient', [
    ([-.5, -.25, .75, .5], 0., [0., 0., 0., 0.]),
    ([-.5, -.25, -.75, -.5], 0., [0., 0., 0., 0.]),
    ([.5, .25, .75, .5], 0., [0., 0., 0., 0.]),
    # all from the first closed one after an open one
    ([.5, -.25, .75, .5], 1.5, [0., -1., 1., 1.]),
    ([-.5, .25, -.75, -.5], 1.25, [0., 0., -1., -1.]),
    ([-.5, .25, .75, -.5], .5, [0., 0., 0., -1.]),
    ([.5, -2., .75, -.5], 3.25, [0., -1., 1., -1.]),
])
def test_order_penalty(t, penalty, gradient):
    gates = SplitGates(16)
    gates.t.data.copy_(torch.tensor(t))
    value = gates.order_penalty()
    value.backward()
    assert value.item() == penalty
    assert gates.t.grad.tolist() == gradient
    assert is_legal(gates.t) == (penalty == 0)


@pytest.mark.parametrize('t', [[.5, -.25, .75, .5], [.9, -.9, .9, -.9], [.1, .1, -.8, -.9], [.3, -.3, -.3, -.3]])
def test_penalty_repairs_an_illegal_order(t):
    gates = SplitGates(16)
    gates.t.data.copy_(torch.tensor(t))
    optimizer = torch.optim.SGD(gates.parameters(), lr=0.03)
    assert not is_legal(gates.t)
    for _ in range(40):
        optimizer.zero_grad()
        gates.order_penalty().backward()
        optimizer.step()
        if is_legal(gates.t):
            break
    assert is_legal(gates.t)


@pytest.mark.parametrize('channels', [2, 32, 48, 640])
def test_every_start_is_legal_and_certain(channels):
    gates = SplitGates(channels, 1)
    for closed in range(len(gates.t) + 1):
        gates.start_at(0.5**closed)
        assert gates.split_ratio == 0.5**closed
        assert (gates.t > 0).tolist() == [False] * closed + [True] * (len(gates.t) - closed)
        assert gates.t.abs().min() >= 0.19 and gates.t.abs().max() < 1
        # The gates beside the split turn first.
        distance = [closed - k - 1 if k < closed else k - closed for k in range(len(gates.t))]
        assert torch.equal(gates.t.abs().argsort(stable=True), torch.tensor(distance).argsort(stable=True))


@pytest.mark.parametrize('arch', ['t0', 't1', 't2', 's', 'm', 'l'])
def test_every_width_of_every_variant_starts_at_a_quarter(arch):
    width = PartialNet.arch_settings[arch]['embed_dim']
    for channels in (width, 2 * width, 4 * width, 8 * width):
        gates = SplitGates(channels, 0.25)
        channel_mask, weight_mask = gates.masks()
        first = torch.arange(channels) < channels // 4
        assert torch.equal(channel_mask, first.float())
        assert torch.equal(weight_mask, torch.outer(first, first).float())
        assert gates.cost() == channels**2 / 4


@pytest.mark.parametrize('channels, split_ratio, fragments', [
    (33, 0.25, ('even number of channels', 'got channels=33', 'no factor 2')),
    (1, 1, ('channels=1', )),
    (0, 1, ('channels=0', )),
    (8.0, 1, ('channels=8.0', )),
    (12, 0.125, ('split_ratio of DPConv', 'for 12 channels one of 1, 0.5, 0.25; got 0.125')),
    (12, 0.3, ('got 0.3', )),
    (12, 0, ('got 0', )),
])
def test_refuses_what_gates_cannot_divide(channels, split_ratio, fragments):
    with pytest.raises(ValueError) as error:
        SplitGates(channels, split_ratio)
    for fragment in fragments:
        assert fragment in str(error.value)
