# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Averaged weights: computed as they should be, measured, saved, resumed."""
import math
import shutil

import torch
from mmengine.hooks import Hook

MOMENTUM, GAMMA = 0.0002, 2  # the page's default of 2000 would average over more iterations than there are here


class Witness(Hook):
    """Averages the weights that each step leaves, by the formula, and notes what is validated."""

    priority = 'VERY_HIGH'

    def __init__(self, runner):
        self.steps = 0
        self.validated = []
        runner.register_hook(self)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        state = {name: value.clone() for name, value in runner.model.state_dict().items()}
        if self.steps == 0:
            self.average = state
        else:
            momentum = (1 - MOMENTUM) * math.exp(-(1 + self.steps) / GAMMA) + MOMENTUM
            for name, value in state.items():
                if value.is_floating_point():
                    self.average[name] = (1 - momentum) * self.average[name] + momentum * value
        self.steps += 1

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.validated.append({name: value.clone() for name, value in runner.model.state_dict().items()})


def assert_same(state, expected):
    assert set(state) == set(expected)
    for name, value in state.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_average_is_measured_saved_and_resumed(build_runner, tmp_path):
    def runner_in(folder, **options):
        return build_runner('ema.py', more=f'custom_hooks[0].update(gamma={GAMMA})', train_cfg__max_epochs=2,
                            work_dir=str(tmp_path / folder), **options)

    def saved_in(folder):
        return torch.load(tmp_path / folder / 'epoch_2.pth', map_location='cpu', weights_only=False)

    runner = runner_in('whole')
    witness = Witness(runner)
    runner.train()
    saved = saved_in('whole')
    assert witness.steps == 4
    plain = runner.model.state_dict()
    # weights and, by update_buffers, statistics
    for name in ('backbone.stages.0.0.mlp.conv1.weight', 'backbone.stages.0.0.mlp.norm.running_var'):
        assert (witness.average[name] - plain[name]).abs().max() > 1e-4, name
    assert_same(saved['state_dict'], witness.average)
    assert_same(witness.validated[-1], witness.average)
    # the training goes on with the plain weights
    assert_same({name[len('module.'):]: value for name, value in saved['ema_state_dict'].items() if name != 'steps'},
                plain)

    (tmp_path / 'parts').mkdir()
    shutil.copy(tmp_path / 'whole' / 'epoch_1.pth', tmp_path / 'parts')
    runner_in('parts', resume=True).train()
    resumed = saved_in('parts')
    for part in ('state_dict', 'ema_state_dict'):
        assert set(resumed[part]) == set(saved[part])
        assert [name for name, value in resumed[part].items() if not torch.equal(value, saved[part][name])] == [], part
