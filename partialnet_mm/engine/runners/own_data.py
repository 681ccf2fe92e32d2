# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The own-data config: three settings at its top level, written to the positions where mmdet reads them."""
import contextlib
import copy
import functools
import json
import logging
import os
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ...preflight import dicts_with, leaf_datasets

SPLITS = ('train', 'val', 'test')


def is_own_data_config(cfg: Config) -> bool:
    """Whether a config has ``own_data = True``, or the runner type that marked such configs in version 0.1."""
    return bool(cfg.get('own_data')) or cfg.get('runner_type') == 'CocoFormatRunner'


def apply_own_data_settings(cfg: Config, splits: Sequence[str] = SPLITS) -> Config:
    """Writes the settings of an own-data config where mmdet reads them; returns any other config as it is.

    An own-data config has ``own_data = True`` and, at its top level:

    - ``data_root``: Folder of the data. Every data set gets it, and every metric its annotation file below it.
    - ``classes``: Names of the classes to train, or None for all categories of the annotations. Every data set gets the
      names, every head their number. mmdet numbers classes in the order of the annotation file, so the names are put
      into that order.
    - ``checkpoint``: A checkpoint of the pretraining, or None for random weights. The backbone gets it.

    The function is idempotent. It reads no file for a data set that has the settings already, so the config that a
    training saves loads on a machine without the data.

    Args:
        cfg: Any config, with the changes of the command line.
        splits: Splits whose data will be read: their files must exist and have the classes. The others get the settings
            unchecked; with no split and neither classes nor annotations, the number of classes stays as the config has
            it. Defaults to ('train', 'val', 'test').

    Returns:
        A changed copy of an own-data config, or ``cfg`` itself.

    Raises:
        ValueError: If ``data_root`` or ``classes`` are no names, a class is missing in the annotations, annotation
            files have the classes in different orders, or a file is not in COCO format.
        FileNotFoundError: If the data root, an annotation file or a folder of images does not exist.
    """
    if not is_own_data_config(cfg):
        return cfg
    cfg = copy.deepcopy(cfg)
    root = cfg.get('data_root')
    if not isinstance(root, str) or not root:
        raise ValueError(f'data_root must be the folder of your data, got {root!r}: --cfg-options data_root=FOLDER')
    datasets = {split: list(leaf_datasets(cfg[f'{split}_dataloader'].dataset))
                for split in SPLITS if cfg.get(f'{split}_dataloader')}
    every = [dataset for found in datasets.values() for dataset in found]
    classes = _as_classes(cfg.get('classes')) or _written_classes(every)
    to_check = [dataset for split in splits for dataset in datasets.get(split, ())
                if not classes or (dataset.get('data_root'), _written_classes([dataset])) != (root, classes)]
    classes = _check_files(to_check, every, root, classes)

    for dataset in every:
        dataset.data_root = root
        if classes:
            dataset.metainfo = dict(dataset.get('metainfo') or {}, classes=classes)
    for split, found in datasets.items():
        metrics = cfg.get(f'{split}_evaluator')
        for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
            if metric and 'ann_file' in metric and len(found) == 1:
                metric.ann_file = os.path.join(root, found[0].ann_file)
    if classes:
        cfg.classes = classes
        for head in dicts_with(cfg.model, 'num_classes'):
            head.num_classes = len(classes)
    if cfg.get('checkpoint'):
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=cfg.checkpoint, prefix='backbone.')
    return cfg


@RUNNERS.register_module()
class CocoFormatRunner(Runner):
    """mmengine's runner, for own-data configs that the scripts of another library start.

    The tools of this project apply the settings when they load a config and need no runner of their own. With
    ``runner_type='CocoFormatRunner'`` in the config, any script that builds its runner from the registry does the same.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> 'CocoFormatRunner':
        """Builds the runner from a config after :func:`apply_own_data_settings`, whose errors it raises."""
        return super().from_cfg(apply_own_data_settings(cfg))


def _as_classes(classes: object) -> tuple[str, ...] | None:
    """Names as a tuple; a single name on the command line is a string, not a list of letters."""
    if classes is None:
        return None
    names = (classes, ) if isinstance(classes, str) else tuple(classes) if isinstance(classes, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"classes must be names, e.g. --cfg-options \"classes=['cat','dog']\", got {classes!r}")
    return names


def _written_classes(datasets: Sequence[ConfigDict]) -> tuple[str, ...] | None:
    """The classes that the first data set with any has."""
    return next((_as_classes(dataset.metainfo.classes) for dataset in datasets
                 if (dataset.get('metainfo') or {}).get('classes')), None)


def _check_files(datasets: Sequence[ConfigDict], every: Sequence[ConfigDict], root: str,
                 classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Checks the files of data sets; returns the classes in the order of the annotation files, None if unknown."""
    if datasets and not os.path.isdir(root):
        raise FileNotFoundError(f'data_root {root!r} is not a folder: name yours by --cfg-options data_root=FOLDER')
    read_categories = functools.cache(_read_categories)
    first = None
    if classes is None:  # all categories of the first annotation file that can be read, the training's before others
        for path in (os.path.join(root, dataset.ann_file) for dataset in every):
            with contextlib.suppress(OSError, ValueError):
                first = path, read_categories(path)
                break
    for dataset in datasets:
        path = os.path.join(root, dataset.ann_file)
        prefix = (dataset.get('data_prefix') or {}).get('img') or ''
        if not os.path.isfile(path):
            raise FileNotFoundError(f'annotation file {path!r} does not exist: data_root is {root!r}, '
                                    f'ann_file {dataset.ann_file!r}')
        if not os.path.isdir(os.path.join(root, prefix)):
            raise FileNotFoundError(f'image folder {os.path.join(root, prefix)!r} does not exist: data_root is '
                                    f'{root!r}, data_prefix.img {prefix!r}')
        known = read_categories(path)
        names = classes or first[1]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f'classes {unknown} are not among the categories of {path!r}: {list(known)}')
        ordered = tuple(name for name in known if name in names)
        if first and ordered != first[1]:
            raise ValueError(f'{first[0]!r} and {path!r} have the classes in different orders, {list(first[1])} and '
                             f'{list(ordered)}; mmdet numbers classes in the order of each file')
        first = first or (path, ordered)
    if first is None:
        return classes
    if classes and first[1] != classes:
        print_log(f'classes are used in the order of the annotation files: {list(first[1])}', logger='current',
                  level=logging.INFO)
    return first[1]


def _read_categories(path: str) -> tuple[str, ...]:
    try:
        with open(path, encoding='utf-8') as file:
            return tuple(category['name'] for category in json.load(file)['categories'])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'annotation file {path!r} is not in COCO format: {type(error).__name__}: {error}') from error
