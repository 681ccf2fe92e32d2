# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A training of seconds with all that a resume must carry on: batch norm, dropout, Adam, schedules, augmentation."""
import argparse
import atexit
import hashlib
import time

import numpy as np
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
    """PartialNet, dropout, a linear layer; ``padding`` makes its checkpoints large.

    Args:
        width (int): Features of the backbone's first stage. Defaults to 8.
        padding (int): Unused weights. Defaults to 0.
        nan_at (int, optional): Number of the loss that is NaN, from 1.
            Defaults to None.
        ruin_at (int, optional): Number of the loss after which a weight is NaN
            although the loss is not. Defaults to None.
        step_time (float): Seconds that each step takes longer. Defaults to 0.
    """

    def __init__(self, width: int = 8, padding: int = 0, nan_at: int | None = None,
                 ruin_at: int | None = None, step_time: float = 0.) -> None:
        super().__init__()
        self.backbone = PartialNet(dict(TINY, embed_dim=width), drop_path_rate=0.1)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8 * width, 2)
        self.padding = nn.Parameter(torch.zeros(padding), requires_grad=False)
        self.nan_at = nan_at
        self.ruin_at = ruin_at
        self.step_time = step_time
        self.calls = 0

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor, mode: str = 'tensor') -> object:
        logits = self.head(self.dropout(self.backbone(torch.stack(list(inputs)))[0].mean((2, 3))))
        if mode == 'predict':
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


def build_runner(work_dir: str, epochs: int = 4, resume: bool = False, load_from: str | None = None,
                 workers: int = 0, persistent: bool = False, seed: int | None = 0, val: bool = True,
                 launcher: str = 'none', model: dict | None = None, checkpoint: dict | None = None,
                 hooks: list | None = None, length: int = 12, iterations: int | None = None,
                 dataset: Dataset | None = None) -> Runner:
    """An mmengine runner with the hooks of this project's configs.

    Args:
        work_dir (str): For checkpoints and logs.
        epochs (int): Of 3 iterations by default. Defaults to 4.
        resume (bool): As in a config. Defaults to False.
        load_from (str, optional): As in a config. Defaults to None.
        workers (int): Of the data loader. Defaults to 0.
        persistent (bool): Whether they persist. Defaults to False.
        seed (int, optional): None lets mmengine draw one. Defaults to 0.
        val (bool): Whether to validate after each epoch. Defaults to True.
        launcher (str): 'none' or 'pytorch', over gloo. Defaults to 'none'.
        model (dict, optional): Arguments of :class:`Classifier`.
        checkpoint (dict, optional): Of the checkpoint hook.
        hooks (list, optional): More hooks.
        length (int): Images. Defaults to 12.
        iterations (int, optional): Length of a loop over iterations instead of
            epochs. Defaults to None.
        dataset (Dataset, optional): Instead of ``length`` images.

    Returns:
        Runner: Ready to train.
    """
    wrapper = None
    if launcher == 'pytorch':
        torch.distributed.init_process_group('gloo')
        atexit.register(torch.distributed.destroy_process_group)  # as the tools do
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None)

    def loader(batch_size: int, shuffle: bool) -> dict:
        return dict(batch_size=batch_size, num_workers=workers, persistent_workers=persistent and workers > 0,
                    sampler=dict(type='DefaultSampler', shuffle=shuffle), dataset=dataset or Images(length))

    by_epoch = iterations is None
    torch.manual_seed(0)  # of the weights; what training draws is the runner's affair
    return Runner(
        model=Classifier(**(model or {})),
        work_dir=work_dir,
        train_dataloader=loader(4, True),
        train_cfg=dict(by_epoch=True, max_epochs=epochs) if by_epoch else dict(
            by_epoch=False, max_iters=iterations, val_interval=10**6),
        val_dataloader=loader(6, False) if val else None,
        val_cfg=dict() if val else None,
        val_evaluator=[Right()] if val else None,
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
                         dict(type='MultiStepLR', by_epoch=True, milestones=[2, 3])],
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
    parser.add_argument('--report', help='file to write the epoch to at which training starts')
    args = parser.parse_args()
    torch.set_num_threads(1)
    build_runner(args.work_dir, args.epochs, args.resume, workers=args.workers, launcher=args.launcher,
                 model=dict(step_time=args.step_time),
                 hooks=[StartReport(args.report)] if args.report else None).train()


if __name__ == '__main__':
    main()
