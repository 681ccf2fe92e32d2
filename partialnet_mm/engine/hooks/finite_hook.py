# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Stops a training whose numbers have gone wrong, while the last good checkpoint is still there."""
import math
import os
from collections import deque
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stops at the first loss that is NaN or infinite, and never lets such weights be saved.

    The message gives the iteration, the last finite losses, and a file with
    the batch: its images, where they came from, and their annotations.
    mmengine reads every loss for its log anyway, so the check costs no further
    wait for the GPU.

    Args:
        history: Iterations whose losses the message shows. Defaults to
            5.
    """

    # Before checkpoints (VERY_LOW) and the log (BELOW_NORMAL).
    priority = 'NORMAL'

    def __init__(self, history: int = 5) -> None:
        self.history: deque[tuple[int, dict[str, float]]] = deque(maxlen=history)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        """Checks the losses of the iteration.

        Raises:
            FloatingPointError: If one is not finite.
        """
        losses = {name: value.item() if isinstance(value, torch.Tensor) else float(value)
                  for name, value in (outputs or {}).items() if 'loss' in name}
        wrong = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if not wrong:
            self.history.append((runner.iter + 1, losses))
            return
        path = os.path.join(runner.work_dir, 'not_finite', f'iter_{runner.iter + 1}_rank_{runner.rank}.pth')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        batch = describe_batch(data_batch)
        torch.save(batch, path)
        past = '\n'.join(f'  iteration {i}: {_format(values)}' for i, values in self.history) or '  none'
        raise FloatingPointError(
            f'{_format(wrong)} at iteration {runner.iter + 1} (epoch {runner.epoch + 1}, rank {runner.rank})\n'
            f'last finite losses:\n{past}\nthe batch is in {path!r}, from {batch["img_paths"]}\n'
            'no checkpoint was written since; a lower learning rate, a longer warm-up or gradient clipping may help')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Checks the weights: an update may have ruined them after the last finite loss.

        Raises:
            FloatingPointError: If a parameter is not finite, or a buffer is
                NaN.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # Buffers may be infinite by design, as masks are.
        wrong = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
        wrong += [name for name, b in model.named_buffers() if b.is_floating_point() and torch.isnan(b).any()]
        if wrong:
            raise FloatingPointError(
                f'{len(wrong)} weights are not finite at iteration {runner.iter}, first {wrong[0]!r}: no checkpoint '
                f'is written. Last losses: {"; ".join(_format(values) for _, values in self.history)}')


def describe_batch(data_batch: Any) -> dict[str, Any]:
    """A batch as data that can be read again without running code.

    Args:
        data_batch: What the data loader gave, a dict with ``inputs`` and
            ``data_samples`` as in all OpenMMLab libraries.

    Returns:
        dict: ``inputs`` (Tensor | list[Tensor]), ``img_paths`` (list[str]) and
        ``data_samples`` (list[str]), the annotations as text.
    """
    if not isinstance(data_batch, dict):
        return dict(inputs=None, img_paths=[], data_samples=[repr(data_batch)])
    samples: list[Any] = list(data_batch.get('data_samples') or [])
    paths = [str(sample.metainfo['img_path']) for sample in samples if 'img_path' in getattr(sample, 'metainfo', {})]
    return dict(inputs=data_batch.get('inputs'), img_paths=paths, data_samples=[repr(sample) for sample in samples])


def _format(losses: dict[str, float]) -> str:
    return ', '.join(f'{name} {value:.4g}' for name, value in losses.items())
