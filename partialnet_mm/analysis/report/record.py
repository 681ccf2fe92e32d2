# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a training leaves for its report: how it was started, and what the last validation found in each image."""
import io
import json
import logging
import platform
import resource
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...checkpoint.atomic import write_atomically

#: The file in the folder of a run.
RECORD = 'report_record.npz'
#: Segmentations kept for the pictures: those with the most wrong pixels.
KEPT_MAPS = 6


class Record(NamedTuple):
    """The content of the file: numbers by name, and all else as JSON."""

    #: task, classes, command and versions.
    about: dict[str, Any]
    #: Paths of the images, in the order of their numbers below.
    paths: list[str]
    #: Detection: ``sizes`` (N, 2) in (width, height), ``truth`` (M, 7) in (image, x1, y1, x2, y2, label, ignored) and
    #: ``found`` (K, 7) in (image, x1, y1, x2, y2, label, score). Classification: ``truth`` (N), ``found`` (N) and
    #: ``scores`` (N). Segmentation: ``confusion`` (C, C) in pixels, rows are the truth, ``wrong`` (N) as a fraction of
    #: the pixels, and ``map_<image>`` (H, W) of predicted labels with ``truth_<image>``.
    arrays: dict[str, np.ndarray]


def write_record(record: Record, path: Path) -> None:
    """Writes a record as a file of numpy's that needs no pickle."""
    content = io.BytesIO()
    np.savez_compressed(content, about=np.array(json.dumps(record.about)), paths=np.array(json.dumps(record.paths)),
                        **{f'array_{name}': value for name, value in record.arrays.items()})
    write_atomically(content.getvalue(), path)


def read_record(path: Path) -> Record:
    """Reads what :func:`write_record` wrote.

    Raises:
        ValueError: If the file is no such record.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return Record(json.loads(str(content['about'])), json.loads(str(content['paths'])),
                          {name.removeprefix('array_'): content[name] for name in content.files
                           if name.startswith('array_')})
    except (ValueError, KeyError, OSError, EOFError) as error:
        raise ValueError(f'{path} is not the record of a training: {type(error).__name__}: {error}') from error


class ReportHook(Hook):
    """Records the last validation of a training, and writes the training's report at its end.

    The record and the page never end a training: what goes wrong is a warning in the log.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self.truth: dict[str, np.ndarray] | None = None
        self.record = Record({}, [], {})

    def before_val_epoch(self, runner: Runner) -> None:
        """Forgets the validation before."""
        self.samples = []

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                       outputs: Sequence[Any] | None = None) -> None:
        """Keeps what a batch's predictions say about each image."""
        self._try(runner, self._keep, outputs or ())

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Writes the record of this validation; one process of the job does."""
        self._try(runner, self._finish, runner)

    def after_train(self, runner: Runner) -> None:
        """Writes the page; one process of the job does."""
        if runner.rank == 0:
            self._try(runner, self._write_page, runner)

    def _try(self, runner: Runner, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # a report is worth no training
            runner.logger.warning(f'no complete report of this training: {type(error).__name__}: {error}')
            runner.logger.debug(traceback.format_exc())

    def _keep(self, outputs: Sequence[Any]) -> None:
        for sample in outputs:
            kept = _summary(sample)
            if kept is not None:
                self.samples.append(kept)
        maps = sorted((kept for kept in self.samples if 'map' in kept), key=lambda kept: kept['wrong'])
        for kept in maps[:-KEPT_MAPS]:
            del kept['map'], kept['truth_map']

    def _finish(self, runner: Runner) -> None:
        dataset = runner.val_dataloader.dataset
        # Its sampler repeats images so that all processes have equally many.
        samples = dist.collect_results(self.samples, len(dataset), device='cpu')
        self.samples = []
        if runner.rank > 0:
            return
        classes = [str(name) for name in (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()]
        about = dict(epoch=runner.epoch, iteration=runner.iter, classes=classes)
        if samples and self.truth is None and samples[0]['task'] == 'detection':
            self.truth = _boxes_of(dataset)
        self.record = _as_record(samples, about, self.truth or {}, len(classes))
        self._write(runner)

    def _write(self, runner: Runner) -> None:
        about = dict(self.record.about, **_about_run(runner))
        write_record(self.record._replace(about=about), Path(runner.work_dir, runner.timestamp, RECORD))

    def _write_page(self, runner: Runner) -> None:
        from .page import write_report
        self._write(runner)
        runner.logger.info(f'the report of this training is {str(write_report(Path(runner.work_dir)))!r}')


def _summary(sample: Any) -> dict[str, Any] | None:
    """What the report needs of one prediction; None for other tasks than the three known here."""
    path = str(sample.metainfo.get('img_path', '')) if hasattr(sample, 'metainfo') else ''
    if 'pred_instances' in sample and 'bboxes' in sample.pred_instances:
        found = sample.pred_instances.cpu()
        boxes = torch.as_tensor(found.bboxes).float()
        if boxes.ndim != 2 or boxes.shape[1] != 4:  # rotated boxes
            return None
        height, width = sample.metainfo['ori_shape'][:2]
        columns = torch.cat((boxes, found.labels[:, None].float(), found.scores[:, None].float()), dim=1)
        return dict(task='detection', path=path, size=(width, height), found=columns.numpy())
    if 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
        found, truth = (sample.get(name).data.squeeze(0).cpu().numpy() for name in ('pred_sem_seg', 'gt_sem_seg'))
        known = truth != 255
        wrong = float((found != truth)[known].mean()) if known.any() else 0.
        return dict(task='segmentation', path=path, wrong=wrong, map=found.astype(np.uint8),
                    truth_map=truth.astype(np.uint8), confusion=_count_pairs(truth[known], found[known]))
    if 'pred_label' in sample and 'gt_label' in sample and sample.gt_label.numel() == 1:
        label = int(sample.pred_label)
        score = float(sample.pred_score[label]) if 'pred_score' in sample else 1.
        return dict(task='classification', path=path, truth=int(sample.gt_label), found=label, score=score)
    return None


def _count_pairs(truth: np.ndarray, found: np.ndarray) -> dict[tuple[int, int], int]:
    """Pixels by pairs of true and predicted label."""
    pairs, counts = np.unique(truth.astype(np.int64) * 256 + found.astype(np.int64), return_counts=True)
    return {divmod(int(pair), 256): int(count) for pair, count in zip(pairs, counts)}


def _boxes_of(dataset: Any) -> dict[str, np.ndarray]:
    """The annotated boxes of each image of a data set of mmdet, (M, 6) in (x1, y1, x2, y2, label, ignored)."""
    boxes = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        rows = [(*instance['bbox'], instance['bbox_label'], instance.get('ignore_flag', 0))
                for instance in info['instances']]
        boxes[str(info['img_path'])] = np.array(rows, np.float64).reshape(-1, 6)
    return boxes


def _as_record(samples: Sequence[dict], about: dict, truth: dict[str, np.ndarray], classes: int) -> Record:
    task = samples[0]['task'] if samples else None
    about = dict(about, task=task)
    paths = [sample['path'] for sample in samples]
    if task == 'detection':
        def numbered(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
            return np.concatenate([np.zeros((0, width + 1))] + [
                np.column_stack((np.full(len(row), number), row.reshape(-1, width)))
                for number, row in enumerate(rows)])
        return Record(about, paths, dict(
            sizes=np.array([sample['size'] for sample in samples]),
            truth=numbered([truth.get(path, np.zeros((0, 6))) for path in paths], 6),
            found=numbered([sample['found'] for sample in samples], 6)))
    if task == 'segmentation':
        confusion = np.zeros((classes, classes), np.int64)
        for sample in samples:
            for (row, column), count in sample['confusion'].items():
                if row < classes and column < classes:
                    confusion[row, column] += count
        arrays = dict(confusion=confusion, wrong=np.array([sample['wrong'] for sample in samples]))
        kept = sorted((number for number, sample in enumerate(samples) if 'map' in sample),
                      key=lambda number: -samples[number]['wrong'])[:KEPT_MAPS]
        for number in kept:
            arrays |= {f'map_{number}': samples[number]['map'], f'truth_{number}': samples[number]['truth_map']}
        return Record(about, paths, arrays)
    if task == 'classification':
        return Record(about, paths, {key: np.array([sample[name] for sample in samples]) for key, name in
                                     (('truth', 'truth'), ('found', 'found'), ('scores', 'score'))})
    return Record(about, paths, {})


def _about_run(runner: Runner) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    # In KiB on Linux; the process of rank 0, without its workers.
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    loader = runner.train_dataloader
    # Of a loader with a batch sampler, only that knows the size.
    batch = getattr(loader, 'batch_size', None) or getattr(getattr(loader, 'batch_sampler', None), 'batch_size', None)
    return dict(
        command=shlex.join([Path(sys.executable).name, *sys.argv]), processes=runner.world_size,
        batch=batch, python=platform.python_version(),
        torch=torch.__version__, device=torch.cuda.get_device_name(0) if on_gpu else 'CPU',
        gpu_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None, resident_mib=resident,
        iterations=runner.iter, epochs=runner.epoch)


def latest_record(work_dir: Path) -> Record:
    """The record of the newest run in a work folder that has one; an empty one if there is none."""
    for path in sorted(work_dir.glob(f'*/{RECORD}'), reverse=True):
        try:
            return read_record(path)
        except ValueError as error:
            print_log(str(error), logger='current', level=logging.WARNING)
    return Record({}, [], {})
