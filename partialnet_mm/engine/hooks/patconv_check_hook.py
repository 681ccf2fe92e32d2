# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Stops a training whose ``conv_cfg`` of type 'PATConv' has changed nothing."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...models.patconv2d import require_patconv


@HOOKS.register_module()
class PATConvCheckHook(Hook):
    """Stops before training where a ``conv_cfg`` of type 'PATConv' has changed nothing.

    ``tools/train.py`` and ``tools/test.py`` look themselves; this hook is for
    other tools: ``custom_hooks = [dict(type='PATConvCheckHook')]``.
    """

    # Before checkpoints are looked for and read.
    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Checks the runner's model.

        Raises:
            ValueError: See :func:`require_patconv`.
        """
        require_patconv(runner.model, runner.cfg.get('model'))
