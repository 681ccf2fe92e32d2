# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A search of seconds: what RatioHook logs, what it saves, and that the warm-up's epochs survive a resume."""
import json

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from partialnet_mm.models import DPConv, SearchObjective

LAYERS = {'first': 16, 'second': 32}


class Searcher(BaseModel):
    """Two DPConv layers that are paid for nothing, so that the budget alone moves them."""

    def __init__(self, warmup_epochs=0):
        super().__init__()
        for name, width in LAYERS.items():
            self.add_module(name, DPConv(width, width, 3, padding=1, bias=False, split_ratio=1))
        self.objective = SearchObjective(self, 4, -1., warmup_epochs=warmup_epochs)
        self.seen = []

    def forward(self, inputs, mode='loss'):
        self.objective.prepare()
        outs = [getattr(self, name)(torch.zeros(1, width, 4, 4)) for name, width in LAYERS.items()]
        losses = self.objective.weigh(dict(loss=1 + sum(out.sum() for out in outs)))
        self.seen.append((self.objective.epoch.item(), losses['cost_ratio'].item()))
        return losses


def build_runner(work_dir, epochs=3, warmup_epochs=0, model=None, resume=False, by_epoch=True, backends=()):
    torch.manual_seed(0)
    return Runner(
        model=model or Searcher(warmup_epochs),
        work_dir=str(work_dir),
        train_dataloader=dict(batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False),
                              dataset=[dict(inputs=torch.zeros(1))] * 4),
        train_cfg=dict(by_epoch=True, max_epochs=epochs) if by_epoch else dict(by_epoch=False, max_iters=4),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.04)),
        default_hooks=dict(ratio=dict(type='RatioHook'), checkpoint=dict(type='CrashSafeCheckpointHook')),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'),
                                                         *(dict(type=name) for name in backends)]),
        resume=resume,
        experiment_name=f'ratios_{work_dir.name}_{resume}_{by_epoch}')


def scalars(work_dir):
    """What went to the visualizer's backends under the hook's names, by step."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            if 'dpconv/cost_of_budget' in values:
                found[values['step']] = values
    return found


def test_ratios_are_logged_and_saved(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    runner = build_runner(tmp_path, backends=['TensorboardVisBackend'])
    runner.train()
    report = runner.model.objective.report()
    assert report['cost'] < 4 * report['budget']

    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'split ratios at kappa=4: cost 1280, 4.000 of the budget\n  first: 1/1\n  second: 1/1' in log
    ratios = '\n  '.join(f'{name}: 1/{1 / ratio:g}' for name, ratio in report['split_ratio'].items())
    assert f'cost {report["cost"]:.0f}, {report["cost"] / report["budget"]:.3f} of the budget\n  {ratios}' in log

    logged = scalars(tmp_path)
    assert list(logged) == [0, 4, 8, 12]
    assert logged[0]['dpconv/cost_of_budget'] == 4 and logged[0]['dpconv/ratio/first'] == 1
    assert logged[12]['dpconv/cost_of_budget'] == pytest.approx(report['cost'] / report['budget'])
    events = EventAccumulator(str(next(tmp_path.glob('*/vis_data'))))
    events.Reload()
    for name in LAYERS:
        drawn = [(event.step, event.value) for event in events.Scalars(f'dpconv/ratio/{name}')]
        assert drawn == [(step, values[f'dpconv/ratio/{name}']) for step, values in logged.items()]

    checkpoint = torch.load(tmp_path / 'epoch_3.pth', weights_only=False)
    assert checkpoint['meta']['dpconv'] == report


def test_gates_out_of_order_are_named(tmp_path):
    model = Searcher()
    model.second.split_gates.t.data.copy_(torch.tensor([.5, -.25, .5, -.25, .5]))
    runner = build_runner(tmp_path, epochs=1, model=model)
    runner.train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'second: 1/4 (gates out of order)' in log and 'first: 1/1\n' in log


def test_warm_up_counts_epochs_over_a_resume(tmp_path):
    build_runner(tmp_path, epochs=2, warmup_epochs=3).train()
    resumed = build_runner(tmp_path, epochs=5, warmup_epochs=3, resume=True)
    resumed.train()
    epochs = [epoch for epoch, _ in resumed.model.seen]
    costs = [cost for _, cost in resumed.model.seen]
    assert epochs == [2] * 4 + [3] * 4 + [4] * 4
    assert costs[:4] == [4] * 4 and costs[-1] < 4


def test_refuses_models_and_loops_that_it_cannot_follow(tmp_path):

    class Other(BaseModel):

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, inputs, mode='loss'):
            return dict(loss=self.layer(inputs[0]).sum())

    with pytest.raises(ValueError, match="RatioHook needs a model that searches .*'DPConvClassifier'; got a Other"):
        build_runner(tmp_path / 'other', model=Other()).train()
    with pytest.raises(ValueError, match=r'warmup_epochs=2 needs a training by epochs .*allowed is 0'):
        build_runner(tmp_path / 'iterations', warmup_epochs=2, by_epoch=False).train()
    build_runner(tmp_path / 'no_warmup', by_epoch=False).train()
