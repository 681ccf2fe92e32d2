# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A training of mmpretrain's own ResNet config, narrowed and on noise, whose batches have changing resolutions."""
import argparse
import atexit
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

import partialnet_mm  # noqa: F401  registers the hooks
from partialnet_mm.engine.hooks.train_resolution_data import images_of
from tests.helpers.libraries import shipped_config

SIZES = [32, 64, 96]


def write_images(folder: Path, count: int = 12) -> Path:
    """Draws noise as two classes of image files."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f'class_{index % 2}' / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (72, 90 + index, 3), dtype=np.uint8)).save(path)
    return folder


class Batches(Hook):
    """Notes of each iteration its number, the sizes of its images, and their sum."""

    def __init__(self) -> None:
        self.seen: list[list] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        images = [image for group in images_of(data_batch) for image in (group if group.dim() == 4 else [group])]
        sizes = sorted({tuple(image.shape[-2:]) for image in images})
        self.seen.append([runner.iter, sizes, sum(int(image.sum()) for image in images)])

    @property
    def sides(self) -> list[int]:
        """The side of each batch, all of whose images are squares of that side."""
        assert all(len(sizes) == 1 and sizes[0][0] == sizes[0][1] for _, sizes, _ in self.seen)
        return [sizes[0][0] for _, sizes, _ in self.seen]


def build_runner(work_dir: Path,
                 images: Path,
                 resolution: dict | None = None,
                 hooks: list[Hook] | None = None,
                 workers: int = 0,
                 epochs: int = 2,
                 iterations: int | None = None,
                 options: dict | None = None,
                 launcher: str = 'none') -> Runner:
    """An mmengine runner of ``resnet18_8xb32_in1k.py``, six iterations an epoch.

    Args:
        work_dir (Path): For checkpoints and logs.
        images (Path): From :func:`write_images`.
        resolution (dict, optional): Arguments of the hook. By default it draws
            from ``SIZES``.
        hooks (list[Hook], optional): More hooks.
        workers (int): Of the data loader; they persist. Defaults to 0.
        epochs (int): Defaults to 2.
        iterations (int, optional): Length of a loop over iterations instead.
            Defaults to None.
        options (dict, optional): Further changes of the config.
        launcher (str): 'none' or 'pytorch', over gloo. Defaults to 'none'.

    Returns:
        Runner: Ready to train.
    """
    cfg = Config.fromfile(shipped_config('mmpretrain', 'resnet/resnet18_8xb32_in1k.py'))
    cfg.merge_from_dict({
        'work_dir': str(work_dir),
        'launcher': launcher,
        'log_level': 'WARNING',
        'randomness.seed': 0,
        'custom_hooks': [dict(type='TrainResolutionHook', **(resolution or dict(sizes=SIZES)))],
        'model.backbone.stem_channels': 4,
        'model.backbone.base_channels': 4,
        'model.head': dict(in_channels=32, num_classes=2, topk=(1, )),
        'data_preprocessor.num_classes': 2,
        'train_dataloader': dict(batch_size=2, num_workers=workers, persistent_workers=workers > 0),
        'train_dataloader.dataset': dict(_delete_=True, type='CustomDataset', data_prefix=str(images),
                                         pipeline=cfg.train_pipeline),
        'train_cfg': dict(max_epochs=epochs) if iterations is None else dict(
            _delete_=True, by_epoch=False, max_iters=iterations),
        'default_hooks.checkpoint': dict(type='CrashSafeCheckpointHook', interval=1, by_epoch=iterations is None,
                                         max_keep_ckpts=-1),
        'default_hooks.epoch_data': dict(type='EpochDataHook'),
        'default_hooks.preemption': dict(type='PreemptionHook'),
        **dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator', 'test_cfg', 'test_dataloader',
                         'test_evaluator')),
        **(options or {}),
    })
    if iterations is not None:
        cfg.param_scheduler = None
        cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    if launcher == 'pytorch':
        torch.distributed.init_process_group('gloo')
        atexit.register(torch.distributed.destroy_process_group)
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
    cfg.experiment_name = f'resolution_{Path(work_dir).name}_{id(cfg)}'
    runner = Runner.from_cfg(cfg)
    for hook in hooks or []:
        runner.register_hook(hook)
    return runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('images', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    batches = Batches()
    runner = build_runner(args.work_dir, args.images, hooks=[batches], epochs=4, launcher='pytorch')
    runner.train()
    (args.work_dir / f'rank_{runner.rank}.json').write_text(json.dumps(batches.seen))


if __name__ == '__main__':
    main()
