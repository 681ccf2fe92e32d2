# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of all data that a config names."""
import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from .coco import check_coco
from .findings import Finding, errors_in, format_findings
from .image_folder import check_image_folder


def check_config(cfg: Config,
                 images: int | None = 200,
                 splits: Sequence[str] = ('train', 'val', 'test')) -> list[Finding]:
    """Checks the data of a config, without building anything.

    It knows COCO format (``CocoDataset``) and folders of classes (``ImageNet`` and ``CustomDataset`` of mmpretrain),
    also inside wrappers such as RepeatDataset and ConcatDataset. Other data sets give a note.

    Args:
        cfg: Any OpenMMLab config.
        images: Number of images to decode of each data set, None for all. Defaults to 200.
        splits: Splits whose data to check. Defaults to ('train', 'val', 'test').

    Returns:
        Errors and notes; data that two loaders share is checked once.
    """
    findings: list[Finding] = []
    done = []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            key = {name: dataset.get(name) for name in ('type', 'data_root', 'ann_file', 'data_prefix', 'split')}
            if key not in done:
                done.append(key)
                findings += _check_dataset(dataset, cfg, images)
    for split in splits:
        findings += _check_evaluator(cfg, split)
    return findings


def stop_on_errors(findings: Sequence[Finding]) -> None:
    """Raises a ValueError with the report if a training must not start."""
    errors = errors_in(findings)
    if errors:
        raise ValueError(f'{len(errors)} errors in the data; no training was started\n{format_findings(findings)}')


def leaf_datasets(dataset: dict) -> Iterator[dict]:
    """Configs of the data sets inside wrappers such as RepeatDataset and ConcatDataset, or the data set itself."""
    if 'dataset' in dataset:
        yield from leaf_datasets(dataset['dataset'])
    elif 'datasets' in dataset:
        for member in dataset['datasets']:
            yield from leaf_datasets(member)
    else:
        yield dataset


def dicts_with(node: object, key: str) -> Iterator[ConfigDict]:
    """All dicts in a tree of dicts and lists that have a key."""
    if isinstance(node, dict) and key in node:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from dicts_with(child, key)


def image_folders(dataset: dict) -> list[str]:
    """Folders that a data set reads images or annotations from, by its config."""
    folders = []
    for leaf in leaf_datasets(dataset):
        prefix = leaf.get('data_prefix') or leaf.get('split') or ''
        for name in prefix.values() if isinstance(prefix, dict) else [prefix]:
            folders.append(os.path.join(leaf.get('data_root') or '', name or ''))
    return [folder for folder in folders if folder]


def _check_dataset(dataset: Any, cfg: Config, images: int | None) -> Iterator[Finding]:
    kind = str(dataset.get('type')).split('.')[-1]
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    if kind == 'CocoDataset':
        ann_file = os.path.join(root, dataset.get('ann_file') or '')
        classes = _classes_of(dataset)
        yield from _check_num_classes(cfg, ann_file, classes)
        masks = any(step.get('with_mask') for step in dataset.get('pipeline') or ())
        yield from check_coco(ann_file, os.path.join(root, prefix.get('img') or ''), classes, masks, images)
    elif kind in ('ImageNet', 'CustomDataset') and not dataset.get('ann_file'):
        folder = prefix if isinstance(prefix, str) else prefix.get('img_path') or ''
        folder = os.path.join(root, folder or dataset.get('split') or '')
        yield from check_image_folder(folder, (cfg.model.get('head') or {}).get('num_classes'), images)
    else:
        yield Finding('not checked', str(root or kind), '', f'data of type {kind} is not known here', note=True)


def _classes_of(dataset: Any) -> list[str] | None:
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes is None:
        try:
            from mmdet.datasets import CocoDataset
        except ImportError:
            return None
        classes = CocoDataset.METAINFO['classes']
    return [classes] if isinstance(classes, str) else list(classes)


def _check_num_classes(cfg: Config, ann_file: str, classes: Sequence[str] | None) -> Iterator[Finding]:
    for name in ('bbox_head', 'mask_head'):
        for owner in dicts_with(cfg.get('model'), name):
            for head in owner[name] if isinstance(owner[name], (list, tuple)) else [owner[name]]:
                count = head.get('num_classes')
                if classes is not None and count is not None and count != len(classes):
                    yield Finding('number of classes', ann_file, f'model {name}', f'num_classes is {count}, but the '
                                  f'data set has {len(classes)} classes: {list(classes)}')


def _check_evaluator(cfg: Config, split: str) -> Iterator[Finding]:
    """A metric must use the annotations of the images that it evaluates."""
    evaluator = cfg.get(f'{split}_evaluator')
    loader = cfg.get(f'{split}_dataloader')
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        ann_file = metric.get('ann_file') if isinstance(metric, dict) else None
        if not ann_file or not loader:
            continue
        files = [os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
                 for dataset in leaf_datasets(loader.dataset)]
        if os.path.normpath(ann_file) not in map(os.path.normpath, files):
            yield Finding('evaluator', ann_file, f'{split}_evaluator', f'the images come from {files}')
