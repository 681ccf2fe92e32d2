# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Shows which split ratios a search has come to."""
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from ...models.dpconv.objective import SearchObjective


@HOOKS.register_module()
class RatioHook(Hook):
    """Follows a search for split ratios, and tells it the epoch, which its warm-up counts.

    Before training and after each epoch it logs each layer's ratio and the
    cost against the budget, as text and, under ``dpconv/``, as scalars to all
    backends of the visualizer, TensorBoard among them. Each checkpoint gets
    the same as plain data under ``meta['dpconv']``, see
    :meth:`SearchObjective.report`.
    """

    # Before checkpoints (VERY_LOW) are written.
    priority = 'NORMAL'

    def before_train(self, runner: Runner) -> None:
        """Logs the ratios that the search starts at.

        Raises:
            ValueError: If the model searches for no ratios, or counts epochs
                where the training has none.
        """
        objective = self._objective(runner)
        if objective.warmup_epochs and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(f'warmup_epochs={objective.warmup_epochs} needs a training by epochs (train_cfg='
                             "dict(by_epoch=True, ...)); in one by iterations allowed is 0")
        self._show(runner, runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        """Tells the model which epoch begins."""
        self._objective(runner).set_epoch(runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Logs the ratios."""
        self._show(runner, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the ratios to the checkpoint."""
        checkpoint['meta']['dpconv'] = self._objective(runner).report()

    def _show(self, runner: Runner, step: int) -> None:
        report = self._objective(runner).report()
        ratios = report['split_ratio']
        lines = [f'{name}: 1/{1 / ratio:g}{" (gates out of order)" if name in report["illegal"] else ""}'
                 for name, ratio in ratios.items()]
        relative = report['cost'] / report['budget']
        runner.logger.info(f'split ratios at kappa={report["kappa"]:g}: cost {report["cost"]:.0f}, {relative:.3f} of '
                           'the budget\n  ' + '\n  '.join(lines))
        scalars = {f'dpconv/ratio/{name}': ratio for name, ratio in ratios.items()}
        runner.visualizer.add_scalars({**scalars, 'dpconv/cost_of_budget': relative}, step=step)

    @staticmethod
    def _objective(runner: Runner) -> SearchObjective:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for module in model.modules():
            if isinstance(module, SearchObjective):
                return module
        raise ValueError(f"RatioHook needs a model that searches for split ratios, type='DPConvClassifier'; got a "
                         f'{type(model).__name__}')
