# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The search's loss: task, budget and order, on toy tasks and in the classifier."""
import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from partialnet_mm.models import DPConv, SearchObjective


def network(widths, split_ratio=0.25):
    """DPConv layers of several widths, side by side."""
    return nn.ModuleList(DPConv(width, width, 3, padding=1, bias=False, split_ratio=split_ratio) for width in widths)


def total(losses):
    """What mmengine minimizes."""
    return sum(value for name, value in losses.items() if 'loss' in name)


@pytest.mark.parametrize('kappa', [1, 2, 4, 8, 16])
@pytest.mark.parametrize('exponent', [-0.01, -1., -2.5])
def test_factor_exceeds_one_exactly_over_budget(kappa, exponent):
    layers = network((16, 32, 48))
    objective = SearchObjective(layers, kappa, exponent)
    full = 16**2 + 32**2 + 48**2
    over = set()
    for ratio in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16):
        for layer in layers:
            layer.split_gates.start_at(ratio)
        terms = objective.terms()
        expected = ratio * kappa
        assert terms['cost_ratio'].item() == pytest.approx(expected)
        assert terms['cost_factor'].item() == pytest.approx(max(expected, 1)**-exponent)
        assert (terms['cost_factor'] > 1) == (expected > 1)
        assert objective.budget == full / kappa
        layers.zero_grad()
        terms['cost_factor'].backward()
        for layer in layers:
            gradient = layer.split_gates.t.grad
            # Over budget, each gate gets a gradient that closes it; otherwise none does.
            assert (gradient > 0).all() if expected > 1 else (gradient == 0).all()
        over.add(expected > 1)
    assert over == ({True, False} if kappa > 1 else {False})


def test_factors_gradient_is_that_of_its_formula():
    layers = network((16, 32)).double()
    objective = SearchObjective(layers, 8, -0.7)
    for layer, ratio in zip(layers, (1 / 2, 1 / 4)):
        layer.split_gates.start_at(ratio)
    objective.terms()['cost_factor'].backward()
    cost, budget = 16**2 / 2 + 32**2 / 4, (16**2 + 32**2) / 8
    for layer, own in zip(layers, (16**2 / 2, 32**2 / 4)):
        opened = (layer.split_gates.t > 0).double()
        change = own / (1 + opened)  # of the cost, for each gate
        torch.testing.assert_close(layer.split_gates.t.grad, 0.7 * (cost / budget)**-0.3 / budget * change)


def test_factor_lowers_the_cost():
    layers = network((16, 32), 1)
    objective = SearchObjective(layers, 4, -1.)
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.05)
    costs = []
    for _ in range(60):
        objective.prepare()
        losses = objective.weigh(dict(loss=torch.tensor(1.)))
        costs.append(losses['cost_ratio'].item())
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
    assert costs[0] == 4 and costs[-1] <= 1
    assert all(after <= before for before, after in zip(costs, costs[1:]))


def test_gates_stuck_beyond_one_are_brought_back():
    layers = network((16, ), 1)
    objective = SearchObjective(layers, 4, -1.)
    layers[0].split_gates.t.data.fill_(3.)
    objective.prepare()
    objective.terms()['cost_factor'].backward()
    assert (layers[0].split_gates.t.grad > 0).all()


def test_terms_are_named_and_counted_once():
    layers = network((16, 32), 1)
    objective = SearchObjective(layers, 4, -0.5, order_weight=0.3)
    layers[0].split_gates.t.data.copy_(torch.tensor([.5, -.25, .5, -.25]))
    task = torch.tensor(1.5, requires_grad=True)
    extra = [torch.tensor(.5), torch.tensor([.25, .75])]
    losses = objective.weigh({'loss': task, 'loss_extra': extra, 'accuracy_top-1': torch.tensor(60.)})
    ratio = (16 * 4 + 32**2) / ((16**2 + 32**2) / 4)
    assert set(losses) == {'loss_task', 'loss_extra', 'loss_order', 'accuracy_top-1', 'task', 'cost_ratio',
                           'cost_factor', 'order_penalty'}
    assert losses['cost_ratio'].item() == pytest.approx(ratio)
    assert losses['cost_factor'].item() == pytest.approx(ratio**0.5)
    assert losses['loss_task'].item() == pytest.approx(1.5 * ratio**0.5)
    assert losses['loss_extra'][1].tolist() == pytest.approx([.25 * ratio**0.5, .75 * ratio**0.5])
    assert losses['task'].item() == pytest.approx(2.5) and losses['accuracy_top-1'] == 60
    assert losses['order_penalty'].item() == pytest.approx(1.)
    assert losses['loss_order'].item() == pytest.approx(0.3)
    assert not any(losses[name].requires_grad for name in ('task', 'cost_ratio', 'cost_factor', 'order_penalty'))
    losses['loss_task'].backward()
    assert task.grad.item() == pytest.approx(ratio**0.5)


@pytest.mark.parametrize('kappa', [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow),
                                   16])
def test_cost_converges_to_the_budget(kappa):
    """Layers that imitate full convolutions would open everywhere; a strong penalty holds them to the budget."""
    width, steps = 16, 90

    def search(exponent, start):
        torch.manual_seed(0)
        teacher = nn.Sequential(*[nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.ReLU())
                                  for _ in range(4)])
        for parameter in teacher.parameters():
            nn.init.normal_(parameter, std=(2 / (9 * width))**0.5)
        student = nn.Sequential(*[nn.Sequential(layer, nn.ReLU()) for layer in network([width] * 4, start)])
        objective = SearchObjective(student, kappa, exponent)
        gates = [p for name, p in student.named_parameters() if 'split_gates' in name]
        weights = [p for name, p in student.named_parameters() if 'split_gates' not in name]
        for t in gates:  # so that not all layers turn at once
            t.data.add_(torch.rand(1) * 0.3 - 0.15)
        # Without memory, each step of a gate has the same size: what is tested is where the gradients point.
        optimizers = [torch.optim.Adam(gates, lr=0.02, betas=(0., 0.)), torch.optim.Adam(weights, lr=2e-3)]
        x = torch.randn(16, width, 4, 4)
        target = teacher(x).detach()
        costs = []
        for _ in range(steps):
            objective.prepare()
            losses = objective.weigh(dict(loss=F.mse_loss(student(x), target)))
            costs.append(losses['cost_ratio'].item())
            student.zero_grad()
            total(losses).backward()
            for optimizer in optimizers:
                optimizer.step()
        return costs

    costs = search(-4., 1)
    assert costs[0] == kappa
    # A gate of one of the four layers is worth a quarter of the budget: the cost goes to and fro around it.
    assert 0.7 < sum(costs[-30:]) / 30 < 1.3
    assert min(costs[-30:]) <= 1
    # Without a penalty to speak of, all stays open.
    assert min(search(-1e-4, 1)[-30:]) > 0.9 * kappa


@pytest.mark.parametrize('kappa, ratios', [
    (1, [1, 1]), (2, [1 / 2, 1 / 2]), (3, [1 / 4, 1 / 4]), (4, [1 / 4, 1 / 4]), (10, [1 / 4, 1 / 16]),
])
def test_starts_at_the_budgets_ratio(kappa, ratios):
    layers = network((12, 96), 1)
    objective = SearchObjective(layers, kappa)
    objective.start_at_budget()
    assert [layer.split_gates.split_ratio for layer in layers] == ratios
    assert kappa == 10 or objective.terms()['cost_ratio'] <= 1
    # Another budget to start at leaves the one that is searched within.
    objective.start_at_budget(2)
    assert [layer.split_gates.split_ratio for layer in layers] == [1 / 2, 1 / 2]
    assert objective.kappa == kappa
    with pytest.raises(ValueError, match='start_kappa must be at least 1.*got 0.5'):
        objective.start_at_budget(0.5)


def test_report_is_plain_data():
    layers = network((16, 32))
    layers[1].split_gates.t.data.copy_(torch.tensor([.5, -.25, .5, -.25, .5]))
    report = SearchObjective(layers, 4).report()
    assert report == dict(kappa=4., cost=16**2 / 4 + 32**2 / 4, budget=(16**2 + 32**2) / 4,
                          split_ratio={'0': 0.25, '1': 0.25}, illegal=['1'])


@pytest.mark.parametrize('arguments, fragments', [
    (dict(kappa=0.5), ('kappa', 'at least 1', 'got 0.5')),
    (dict(kappa='4'), ('kappa', "got '4'")),
    (dict(kappa=float('nan')), ('kappa', 'got nan')),
    (dict(kappa=16), ('kappa=16', '2 layers', 'up to 15.3846')),
    (dict(cost_exponent=0), ('cost_exponent', 'negative', 'got 0')),
    (dict(cost_exponent=0.01), ('cost_exponent', 'got 0.01')),
    (dict(order_weight=-1), ('order_weight', 'got -1')),
    (dict(warmup_epochs=1.5), ('warmup_epochs', 'got 1.5')),
    (dict(warmup_epochs=-1), ('warmup_epochs', 'got -1')),
])
def test_refuses_bad_arguments(arguments, fragments):
    with pytest.raises(ValueError) as error:
        SearchObjective(network((32, 24)), **arguments)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_refuses_a_network_without_dpconv():
    with pytest.raises(ValueError, match="Sequential has no DPConv to search: .*token_mixers='dpconv'"):
        SearchObjective(nn.Sequential(nn.Conv2d(4, 4, 3)))


def test_warm_up_keeps_the_gates_and_ends():
    layers = network((16, 32), 1)
    objective = SearchObjective(layers, 4, -1., warmup_epochs=2)
    layers[0].split_gates.t.data.copy_(torch.tensor([.5, -.25, .5, -.25]))
    with pytest.raises(RuntimeError, match=r'warmup_epochs=2 needs to know the epoch: .*RatioHook'):
        objective.prepare()
    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.split_gates.parameters()], lr=0.1,
                                  weight_decay=0.)
    start = copy.deepcopy([layer.split_gates.t.data for layer in layers])
    for epoch in range(4):
        objective.set_epoch(epoch)
        objective.prepare()
        optimizer.zero_grad()
        outs = [layer(torch.randn(1, width, 4, 4)) for layer, width in zip(layers, (16, 32))]
        losses = objective.weigh(dict(loss=sum(out.square().mean() for out in outs)))
        total(losses).backward()
        optimizer.step()
        moved = [not torch.equal(layer.split_gates.t, old) for layer, old in zip(layers, start)]
        assert moved == [epoch >= 2] * 2
        # Distributed training waits for a gradient of every parameter.
        assert all(p.grad is not None for p in layers.parameters())
    restored = SearchObjective(network((16, 32)), 4, warmup_epochs=2)
    restored.load_state_dict(objective.state_dict())
    assert restored.epoch == 3


CLASSIFIER = dict(
    type='DPConvClassifier',
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=128),
    kappa=8, cost_exponent=-0.5, order_weight=0.7)


@pytest.fixture
def build(tiny_arch):
    """Builds the classifier with other options."""
    pytest.importorskip('mmpretrain')
    backbone = dict(type='PartialNet', arch=tiny_arch, token_mixers='dpconv')

    def build_classifier(**options):
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return MODELS.build(copy.deepcopy(dict(CLASSIFIER, backbone=backbone) | options))

    return build_classifier


@pytest.fixture
def classifier(build):
    from mmpretrain.structures import DataSample
    model = build()
    model.init_weights()
    samples = [DataSample().set_gt_label(i % 3) for i in range(4)]
    return model.train(), torch.randn(4, 3, 64, 64), samples


def test_classifier_logs_each_term(classifier):
    model, inputs, samples = classifier
    assert list(model.objective.layers) == [f'backbone.stages.{i}.{j}.token_mixer'
                                            for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))]
    assert {gates.split_ratio for gates in model.objective.layers.values()} == {1 / 8}
    plain = type(model).__bases__[0].loss(model, inputs, samples)['loss'].item()
    for gates in model.objective.layers.values():
        gates.start_at(1 / 4)
    parsed, logged = model.parse_losses(model(inputs, samples, mode='loss'))
    assert logged['cost_ratio'] == 2 and logged['cost_factor'].item() == pytest.approx(2**0.5)
    assert logged['loss_task'].item() == pytest.approx(logged['task'].item() * 2**0.5)
    assert parsed.item() == logged['loss'].item() == pytest.approx(logged['loss_task'].item())
    assert logged['order_penalty'] == logged['loss_order'] == 0
    assert plain > 0.5
    parsed.backward()
    assert all((gates.t.grad != 0).all() for gates in model.objective.layers.values())


def test_classifier_starts_over_its_budget(build):
    model = build(start_kappa=1)
    assert {gates.split_ratio for gates in model.objective.layers.values()} == {1}
    terms = model.objective.terms()
    assert terms['cost_ratio'] == 8 and terms['cost_factor'].item() == pytest.approx(8**0.5)


def test_classifier_state_is_saved_and_restored(classifier, build, tmp_path):
    model, inputs, samples = classifier
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        model.parse_losses(model(inputs, samples, mode='loss'))[0].backward()
        optimizer.step()
    model.objective.set_epoch(5)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    other = build(kappa=2)
    names = [name for name in other.state_dict() if 'objective' in name or 'split_gates' in name]
    assert names == [*[f'{layer}.split_gates.t' for layer in model.objective.layers], 'objective.epoch']
    other.load_state_dict(torch.load(tmp_path / 'model.pth'))
    for name, gates in other.objective.layers.items():
        assert torch.equal(gates.t, model.objective.layers[name].t) and gates.t.dtype == torch.float32
    assert other.objective.epoch == 5 and other.objective.kappa == 2
    twin = copy.deepcopy(model)
    assert all(twin.objective.layers[name] is not gates and twin.get_submodule(name).split_gates is
               twin.objective.layers[name] for name, gates in model.objective.layers.items())


def test_classifier_refuses_unknown_arguments(build):
    with pytest.raises(TypeError, match="DPConvClassifier has no argument 'kapa' .given kapa=4.; did you mean 'kappa'"):
        build(kapa=4)
