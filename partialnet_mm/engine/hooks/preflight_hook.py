# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The check of data, for trainings that other tools start."""

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...preflight import check_config, format_findings, stop_on_errors


@HOOKS.register_module()
class PreflightHook(Hook):
    """Checks the data of the config before training starts.

    ``tools/train.py`` does so itself, before anything is built; this hook is
    for other tools: ``custom_hooks = [dict(type='PreflightHook')]``.

    Data that was checked and has not changed since is not read again, see
    :func:`~partialnet_mm.preflight.check_config`.

    Args:
        images: Number of images of each data set to decode; None
            for all. Defaults to 200.
    """

    # Before checkpoints are looked for and read.
    priority = 'VERY_HIGH'

    def __init__(self, images: int | None = 200) -> None:
        self.images = images

    def before_run(self, runner: Runner) -> None:
        """Checks on the main process; all hear the outcome.

        Raises:
            ValueError: With the report, if there are errors.
        """
        outcome: list[ValueError | None] = [None]
        if is_main_process():
            findings = check_config(runner.cfg, self.images)
            runner.logger.info(f'check of the data:\n{format_findings(findings)}')
            try:
                stop_on_errors(findings)
            except ValueError as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if outcome[0] is not None:
            raise outcome[0]
