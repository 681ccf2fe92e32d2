# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a training leaves as it was, with frozen stages and with norm_eval."""
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm

from partialnet_mm.models import _layers


class Witness(Hook):
    """Notes the first weights, which mmengine draws when a training starts, and the norms that train at each step."""

    def __init__(self, runner):
        self.norms = []
        runner.register_hook(self)

    def before_train(self, runner):
        self.before = {name: value.clone() for name, value in runner.model.state_dict().items()}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.norms.append({name for name, module in runner.model.backbone.named_modules()
                           if isinstance(module, _BatchNorm) and module.training})

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        assert not any(module.training for module in runner.model.modules())
        self.norms.append('validation')

    def changed(self, runner):
        """Names of the backbone's tensors, and the number of others, that are no longer the same."""
        names = {name for name, value in runner.model.state_dict().items() if not torch.equal(value, self.before[name])}
        backbone = {name[len('backbone.'):] for name in names if name.startswith('backbone.')}
        return backbone, len(names) - len(backbone)


@pytest.mark.parametrize('block, prefixes', [
    ('freeze_two_stages.py', ('downsample_layers.0.', 'stages.0.', 'norm0.', 'downsample_layers.1.', 'stages.1.',
                              'norm1.')),
    ('freeze_backbone.py', ('downsample_layers.', 'stages.', 'norm')),
])
def test_frozen_stages_through_trainings_and_validations(build_runner, block, prefixes):
    """Weights, statistics and gradients, over two epochs with a validation between them."""
    runner = build_runner(block, train_cfg__max_epochs=2)
    witness = Witness(runner)
    runner.train()
    backbone = runner.model.backbone
    changed, others = witness.changed(runner)
    assert changed == {name for name in backbone.state_dict() if not name.startswith(prefixes)}
    assert others == len(runner.model.state_dict()) - len(backbone.state_dict())
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(prefixes), name
        # Adam has a state of what has ever had a gradient
        assert (parameter in runner.optim_wrapper.optimizer.state) != name.startswith(prefixes), name
    training = {name for name, module in backbone.named_modules()
                if isinstance(module, _BatchNorm) and not f'{name}.'.startswith(prefixes)}
    # two iterations, validation, two iterations, validation
    assert witness.norms == [training, training, 'validation'] * 2


def test_norm_eval_keeps_statistics_and_trains_the_rest(build_runner, monkeypatch):
    logged = []
    monkeypatch.setattr(_layers, 'print_log', lambda text, **_: logged.append(text))
    runner = build_runner('norm_eval.py', train_cfg__max_epochs=2)
    witness = Witness(runner)
    runner.train()
    assert len(logged) == 1 and 'no checkpoint had statistics' in logged[0]
    changed, _ = witness.changed(runner)
    backbone = runner.model.backbone
    # The norms of returned feature maps have no pretraining, and train.
    output_norms = {f'norm{i}' for i in range(4)}
    assert changed == {name for name, _ in backbone.named_parameters()} | {
        name for name, _ in backbone.named_buffers() if name.split('.')[0] in output_norms}
    assert witness.norms == [output_norms, output_norms, 'validation'] * 2


def test_a_frozen_backbone_computes_what_it_was_loaded_with(build_runner):
    """The norms of the returned feature maps, which no pretraining has, are the identity."""
    runner = build_runner('freeze_backbone.py')
    backbone = runner.model.backbone
    backbone.init_weights()
    x = torch.rand(2, 3, 64, 96)
    maps = []
    for i in range(4):
        getattr(backbone, f'norm{i}').register_forward_pre_hook(lambda _, args: maps.append(args[0]))
    for out, unnormed in zip(backbone.train()(x), maps):
        torch.testing.assert_close(out, unnormed, rtol=1e-5, atol=0)
        assert not out.requires_grad
