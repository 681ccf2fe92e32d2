# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A training of seconds with all that a resume must carry on: batch norm, dropout, Adam, schedules, augmentation."""
import argparse
import atexit
import hashlib
import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from partialnet_mm import PartialNet

TINY = dict(embed_dim=8, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='ReLU'))


@pytest.fixture(autouse=True)
def former_handlers() -> Iterator[None]:
    """For modules that import it: a training that leaves keeps its signal handlers, for it is about to exit."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Images(Dataset):
    """Squares and stripes with random noise, which stands for augmentation; numpy draws it."""

    metainfo = dict(classes=('square', 'stripes'))

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        image = np.zeros((3, 32, 32), np.float32)
        if index % 2:
            image[:, 8:24, 8:24] = 1
        else:
            image[:, ::4] = 1
        image += np.random.normal(0, 0.3, image.shape).astype(np.float32)
        return dict(inputs=torch.from_numpy(image), labels=index % 2)


class Classifier(BaseModel):
    """PartialNet, dropout, a linear layer.

    Args:
        width: Features of the backbone's first stage. Defaults to 8.
        padding: Unused weights, which make checkpoints large. Defaults to 0.
        nan_at: Number of the loss that is NaN, from 1. Defaults to None.
        ruin_at: Number of the loss after which a weight is NaN although the
            loss is not. Defaults to None.
        step_time: Seconds that each step takes longer. Defaults to 0.
        val_time: Seconds that each batch of a validation takes longer. Defaults
            to 0.
    """

    def __init__(self, width: int = 8, padding: int = 0, nan_at: int | None = None, ruin_at: int | None = None,
                 step_time: float = 0., val_time: float = 0.) -> None:
        super().__init__()
        self.backbone = PartialNet(dict(TINY, embed_dim=width), drop_path_rate=0.1)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8 * width, 2)
        self.padding = nn.Parameter(torch.zeros(padding), requires_grad=False)
        self.nan_at = nan_at
        self.ruin_at = ruin_at
        self.step_time = step_time
        self.val_time = val_time
        self.calls = 0

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor, mode: str = 'tensor') -> object:
        logits = self.head(self.dropout(self.backbone(torch.stack(list(inputs)))[0].mean((2, 3))))
        if mode == 'predict':
            time.sleep(self.val_time)
            return [dict(right=float(r)) for r in logits.argmax(1) == torch.as_tensor(labels)]
        time.sleep(self.step_time)
        self.calls += 1
        loss = nn.functional.cross_entropy(logits, torch.as_tensor(labels))
        if self.calls == self.ruin_at:
            self.head.bias.data[0] = float('nan')
        return dict(loss_cls=loss * (float('nan') if self.calls == self.nan_at else 1))


class Right(BaseMetric):
    """Accuracy; it also draws random numbers, as a validation may."""

    def process(self, data_batch: dict, data_samples: list) -> None:
        np.random.random(7)
        torch.rand(7)
        self.results += data_samples

    def compute_metrics(self, results: list) -> dict:
        # Rises with every validation, so that each has a new best checkpoint.
        self.count = getattr(self, 'count', 0) + 1
        return dict(accuracy=self.count + sum(r['right'] for r in results) / len(results) / 10)


class StartReport(Hook):
    """Writes to a file at which epoch the training starts."""

    def __init__(self, path: str) -> None:
        self.path = path

    def before_train(self, runner: Runner) -> None:
        with open(self.path, 'w') as file:
            file.write(str(runner.epoch))


class SlowSave(Hook):
    """Makes each save take longer."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:  # a signal ends a sleep
            time.sleep(0.05)


class SignalAt(Hook):
    """Sends a signal to this process in the middle of an iteration, or of the validation after an epoch."""

    def __init__(self, iteration: int | None = None, validation: int | None = None,
                 number: int = signal.SIGUSR1) -> None:
        self.iteration = iteration
        self.validation = validation
        self.number = number

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)

    def before_val_epoch(self, runner: Runner) -> None:
        if runner.epoch == self.validation:
            os.kill(os.getpid(), self.number)


def build_runner(work_dir: str, epochs: int = 4, resume: bool = False, load_from: str | None = None,
                 workers: int = 0, persistent: bool = False, seed: int | None = 0, val: bool = True,
                 launcher: str = 'none', model: dict | None = None, checkpoint: dict | None = None,
                 hooks: list | None = None, length: int = 12, iterations: int | None = None,
                 dataset: Dataset | None = None, batch_size: int = 4, accumulate: int = 1,
                 sampler: str = 'DefaultSampler') -> Runner:
    """An mmengine runner with the hooks of this project's configs.

    Args:
        work_dir: For checkpoints and logs.
        epochs: Of 3 iterations by default. Defaults to 4.
        resume: As in a config. Defaults to False.
        load_from: As in a config. Defaults to None.
        workers: Of the data loader. Defaults to 0.
        persistent: Whether they persist. Defaults to False.
        seed: None lets mmengine draw one. Defaults to 0.
        val: Whether to validate after each epoch. Defaults to True.
        launcher: 'none' or 'pytorch', over gloo. Defaults to 'none'.
        model: Arguments of :class:`Classifier`.
        checkpoint: Arguments of the checkpoint hook.
        hooks: More hooks.
        length: Images. Defaults to 12.
        iterations: Length of a loop over iterations instead of epochs. Defaults
            to None.
        dataset: Instead of ``length`` images.
        batch_size: Training images per process. Defaults to 4.
        accumulate: Iterations per step of the optimizer. Defaults to 1.
        sampler: Of the training images. Defaults to 'DefaultSampler'.

    Returns:
        Ready to train.
    """
    wrapper = None
    if launcher == 'pytorch':
        torch.distributed.init_process_group('gloo')
        atexit.register(torch.distributed.destroy_process_group)  # as the tools do
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None)

    def loader(size: int, **sampling: object) -> dict:
        return dict(batch_size=size, num_workers=workers, persistent_workers=persistent and workers > 0,
                    sampler=sampling, dataset=dataset or Images(length))

    by_epoch = iterations is None
    torch.manual_seed(0)  # of the weights; what training draws is the runner's affair
    return Runner(
        model=Classifier(**(model or {})),
        work_dir=str(work_dir),
        train_dataloader=loader(batch_size, type=sampler, shuffle=True),
        train_cfg=dict(by_epoch=True, max_epochs=epochs) if by_epoch else dict(
            by_epoch=False, max_iters=iterations, val_interval=10**6),
        val_dataloader=loader(6, type='DefaultSampler', shuffle=False) if val else None,
        val_cfg=dict() if val else None,
        val_evaluator=[Right()] if val else None,
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2), accumulative_counts=accumulate),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
                         dict(type='MultiStepLR', by_epoch=True, milestones=[2, 3]),
                         dict(type='OneCycleLR', eta_max=1e-2, total_steps=99, by_epoch=False)],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(dict(type='CrashSafeCheckpointHook', interval=1, by_epoch=by_epoch), **(checkpoint or {})),
            epoch_data=dict(type='EpochDataHook'),
            finite=dict(type='FiniteHook'),
            preemption=dict(type='PreemptionHook')),
        custom_hooks=hooks,
        randomness=dict(seed=seed),
        resume=resume,
        load_from=load_from,
        launcher=launcher,
        env_cfg=dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)),
        log_level='WARNING',
        experiment_name=f'toy_{time.monotonic_ns()}',
        cfg=Config(dict(model_wrapper_cfg=wrapper) if wrapper else {}))


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights and buffers, to the last bit."""
    return hash_of(model.state_dict())


def hash_of(state_dict: dict[str, torch.Tensor]) -> str:
    """As :func:`fingerprint`, of a checkpoint's ``state_dict``."""
    digest = hashlib.sha256()
    for name, value in state_dict.items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir')
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--launcher', default='none')
    parser.add_argument('--step-time', type=float, default=0.)
    parser.add_argument('--val-time', type=float, default=0.)
    parser.add_argument('--save-time', type=float, default=0.)
    parser.add_argument('--report', help='file to write the epoch to at which training starts')
    args = parser.parse_args()
    torch.set_num_threads(1)
    hooks = [StartReport(args.report)] * bool(args.report) + [SlowSave(args.save_time)] * bool(args.save_time)
    build_runner(args.work_dir, args.epochs, args.resume, workers=args.workers, launcher=args.launcher, hooks=hooks,
                 model=dict(step_time=args.step_time, val_time=args.val_time)).train()


if __name__ == '__main__':
    main()
