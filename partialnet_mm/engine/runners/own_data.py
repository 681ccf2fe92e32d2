# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Own-data configs: a few settings at their top level, written to the positions where mmdet and mmseg read them."""
import contextlib
import copy
import functools
import logging
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from ...config_types import type_name
from ...preflight import Finding, dicts_with, leaf_datasets, read_coco, several_files
from .own_data_choices import (
    AUTO,
    UNKNOWN_DATA,
    DataFacts,
    choices_in_use,
    fill_choices,
    has_choices,
    this_machine,
)

SPLITS = ('train', 'val', 'test')
#: Images whose headers are read for the size of a folder's images.
SIZES_READ = 200


def is_own_data_config(cfg: Config) -> bool:
    """Whether a config has ``own_data = True``, or the runner type that marked such configs in version 0.1."""
    return bool(cfg.get('own_data')) or cfg.get('runner_type') == 'CocoFormatRunner'


def apply_own_data_settings(cfg: Config, splits: Sequence[str] = SPLITS) -> Config:
    """Writes the settings of an own-data config where mmdet or mmseg read them; returns any other config as it is.

    An own-data config has ``own_data = True`` and, at its top level, for a detector:

    - ``data_root``: Folder of the data. Every data set gets it, and every metric its annotation file below it.
    - ``classes``: Names of the classes to train, or None for all categories of the annotations. Every data set gets the
      names, every head their number. mmdet numbers classes in the order of the annotation file, so the names are put
      into that order.
    - ``checkpoint``: A checkpoint of the pretraining, or None for random weights. The backbone gets it.

    For a segmentor:

    - ``img_dir``, ``ann_dir``: Folders of images and of label images, each with one folder per split.
    - ``classes``: Names of the labels 0, 1, 2 and so on.
    - ``palette``: A colour ``[red, green, blue]`` for each class, or None for mmseg's colours.
    - ``checkpoint``: As above.

    Where the config has 'auto', :func:`fill_choices` writes a value that follows from the data and the machine.

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
        ValueError: If a folder, ``classes`` or ``palette`` are of the wrong kind, a class is missing in the
            annotations, annotation files have the classes in different orders, a file is not in COCO format, or images
            have no label images.
        FileNotFoundError: If the data root, an annotation file or a folder of images does not exist.
    """
    if not is_own_data_config(cfg):
        return cfg
    cfg = copy.deepcopy(cfg)
    datasets = {split: list(leaf_datasets(cfg[f'{split}_dataloader'].dataset))
                for split in SPLITS if cfg.get(f'{split}_dataloader')}
    apply = _apply_to_segmentor if 'img_dir' in cfg else _apply_to_detector
    classes, read_facts = apply(cfg, datasets, splits)
    if classes:
        cfg.classes = classes
        for head in dicts_with(cfg.model, 'num_classes'):
            head.num_classes = len(classes)
    if cfg.get('checkpoint'):
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=cfg.checkpoint, prefix='backbone.')
    if has_choices(cfg):
        facts = read_facts()
        if facts is None:
            print_log('the data of this own-data config cannot be read: its image scale is a guess. The config that '
                      'the training saved has the scale', logger='current', level=logging.WARNING)
        machine = this_machine()
        chosen = fill_choices(cfg, facts or UNKNOWN_DATA, machine)
        cfg.own_data_choices = dict(data=(facts or UNKNOWN_DATA)._asdict(), machine=machine._asdict(), chosen=chosen)
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

    def train(self) -> nn.Module:
        """Trains, after the log has got what was chosen where the config had 'auto'."""
        chosen = choices_in_use(self.cfg)
        if chosen:
            self.logger.info('\n  '.join([
                'chosen from the size of the data and the machine; --cfg-options KEY=VALUE sets another value:',
                *(f'{name}={value!r}' for name, value in chosen.items())]))
        return super().train()


def _apply_to_detector(cfg: Config, datasets: dict[str, list[ConfigDict]], splits: Sequence[str],
                       ) -> tuple[tuple[str, ...] | None, Callable[[], DataFacts | None]]:
    """Writes data_root and classes; returns the classes, and a function that reads the facts of the training data."""
    root = cfg.get('data_root')
    if not isinstance(root, str) or not root:
        raise ValueError(f'data_root must be the folder of your data, got {root!r}: --cfg-options data_root=FOLDER')
    every = [dataset for found in datasets.values() for dataset in found]
    classes = _as_classes(cfg.get('classes')) or _written_classes(every)
    to_check = [dataset for split in splits for dataset in datasets.get(split, ())
                if not classes or (dataset.get('data_root'), _written_classes([dataset])) != (root, classes)]
    read = functools.cache(_read_annotations)
    classes = _check_files(to_check, every, root, classes, read)

    for dataset in every:
        dataset.data_root = root
        if classes:
            dataset.metainfo = dict(dataset.get('metainfo') or {}, classes=classes)
    for split, found in datasets.items():
        metrics = cfg.get(f'{split}_evaluator')
        for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
            if metric and 'ann_file' in metric and len(found) == 1:
                metric.ann_file = _annotation_path(root, found[0])

    def read_facts() -> DataFacts | None:
        for found in datasets.values():  # the training's before others
            parts = []
            for dataset in found:
                with contextlib.suppress(OSError, ValueError):
                    parts.append(read(_annotation_path(root, dataset)))
            if parts:
                return _facts(sum(part.images for part in parts), [size for part in parts for size in part.sizes],
                              np.concatenate([part.areas for part in parts]))
        return None

    return classes, read_facts


def _apply_to_segmentor(cfg: Config, datasets: dict[str, list[ConfigDict]], splits: Sequence[str],
                        ) -> tuple[tuple[str, ...], Callable[[], DataFacts | None]]:
    """Writes img_dir, ann_dir, classes and palette; returns as :func:`_apply_to_detector`."""
    for name in ('img_dir', 'ann_dir'):
        if not isinstance(cfg.get(name), str) or not cfg[name]:
            raise ValueError(f'{name} must be a folder, got {cfg.get(name)!r}: --cfg-options {name}=FOLDER')
    every = [dataset for found in datasets.values() for dataset in found]
    classes = _as_classes(cfg.get('classes')) or _written_classes(every)
    if classes is None:
        raise ValueError("classes must name the labels 0, 1, 2 and so on: --cfg-options \"classes=['background','cat']"
                         '"')
    palette = _as_palette(cfg.get('palette'), len(classes))
    for split, found in datasets.items():
        for dataset in found:
            dataset.data_root = cfg.img_dir
            # An absolute path: mmseg looks for a relative one below data_root.
            labels = os.path.join(os.path.abspath(cfg.ann_dir), dataset.data_prefix.img_path)
            dataset.data_prefix.seg_map_path = labels
            dataset.metainfo = dict(dataset.get('metainfo') or {}, classes=classes,
                                    **(dict(palette=palette) if palette else {}))
            if split in splits or AUTO in (dataset.get('img_suffix'), dataset.get('seg_map_suffix')):
                _check_pairs(cfg, dataset, must_exist=split in splits)

    def read_facts() -> DataFacts | None:
        for dataset in every:
            folder = Path(cfg.img_dir, dataset.data_prefix.img_path)
            files = _files_below(folder, dataset.img_suffix) if folder.is_dir() else []
            if files:
                sizes = []
                for path in files[::math.ceil(len(files) / SIZES_READ)]:
                    with contextlib.suppress(OSError), Image.open(path) as image:
                        sizes.append(image.size)
                return _facts(len(files), sizes)
        return None

    return classes, read_facts


def _check_pairs(cfg: Config, dataset: ConfigDict, must_exist: bool) -> None:
    """Finds the endings of images and label images, and checks that each image has its label image."""
    folders = [Path(cfg.img_dir, dataset.data_prefix.img_path), Path(dataset.data_prefix.seg_map_path)]
    names = []
    for key, setting, folder in zip(('img_suffix', 'seg_map_suffix'), ('img_dir', 'ann_dir'), folders):
        if not folder.is_dir() and must_exist:
            raise FileNotFoundError(f'folder {str(folder)!r} does not exist: {setting} is {cfg[setting]!r}, and has a '
                                    f'folder {dataset.data_prefix.img_path!r}')
        found = _files_below(folder, '') if folder.is_dir() else []
        if dataset.get(key) == AUTO:
            endings = Counter(path.suffix for path in found)
            if len(endings) > 1:
                raise ValueError(f'{str(folder)!r} has files of several kinds, {dict(endings)}; mmseg reads one: set '
                                 f'{key} of its data set')
            dataset[key] = next(iter(endings), '.jpg' if key == 'img_suffix' else '.png')
        names.append({path.relative_to(folder).as_posix().removesuffix(dataset[key])
                      for path in found if path.name.endswith(dataset[key])})
    if not must_exist:
        return
    if not names[0]:
        raise FileNotFoundError(f'{str(folders[0])!r} has no images that end in {dataset.img_suffix!r}')
    alone = sorted(names[0] - names[1])
    if alone:
        raise ValueError(f'{len(alone)} of {len(names[0])} images in {str(folders[0])!r} have no label image in '
                         f'{str(folders[1])!r} that ends in {dataset.seg_map_suffix!r}, first {alone[0]!r}')


def _files_below(folder: Path, ending: str) -> list[Path]:
    """The files of a folder and the folders in it, without hidden ones, in order."""
    return sorted(path for path in folder.rglob(f'*{ending}') if path.is_file() and not path.name.startswith('.'))


def _as_classes(classes: object) -> tuple[str, ...] | None:
    """Names as a tuple; a single name on the command line is a string, not a list of letters."""
    if classes is None:
        return None
    names = (classes, ) if isinstance(classes, str) else tuple(classes) if isinstance(classes, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"classes must be names, e.g. --cfg-options \"classes=['cat','dog']\", got {classes!r}")
    if len(set(names)) < len(names):
        raise ValueError(f'classes must differ, got {list(names)}')
    return names


def _as_palette(palette: object, classes: int) -> list[tuple[int, int, int]] | None:
    """One colour per class, or None."""
    if palette is None:
        return None
    colours = palette if isinstance(palette, (list, tuple)) else ()
    if len(colours) != classes or not all(
            isinstance(colour, (list, tuple)) and len(colour) == 3
            and all(type(value) is int and 0 <= value <= 255 for value in colour) for colour in colours):
        raise ValueError(f'palette must be one [red, green, blue] with values from 0 to 255 for each of {classes} '
                         f'classes, got {palette!r}')
    return [tuple(colour) for colour in colours]


def _written_classes(datasets: Sequence[ConfigDict]) -> tuple[str, ...] | None:
    """The classes that the first data set with any has."""
    return next((_as_classes(dataset.metainfo.classes) for dataset in datasets
                 if (dataset.get('metainfo') or {}).get('classes')), None)


def _check_files(datasets: Sequence[ConfigDict], every: Sequence[ConfigDict], root: str,
                 classes: tuple[str, ...] | None, read: Callable[[str], '_Annotations']) -> tuple[str, ...] | None:
    """Checks the files of data sets; returns the classes in the order of the annotation files, None if unknown."""
    if datasets and not os.path.isdir(root):
        raise FileNotFoundError(f'data_root {root!r} is not a folder: name yours by --cfg-options data_root=FOLDER')
    first = None
    if classes is None:  # all categories of the first annotation file that can be read, the training's before others
        for path in (_annotation_path(root, dataset) for dataset in every):
            with contextlib.suppress(OSError, ValueError):
                first = path, read(path).categories
                break
    for dataset in datasets:
        path = _annotation_path(root, dataset)
        prefix = (dataset.get('data_prefix') or {}).get('img') or ''
        if not os.path.isfile(path):
            raise FileNotFoundError(f'annotation file {path!r} does not exist: data_root is {root!r}, '
                                    f'ann_file {dataset.ann_file!r}')
        if not os.path.isdir(os.path.join(root, prefix)):
            raise FileNotFoundError(f'image folder {os.path.join(root, prefix)!r} does not exist: data_root is '
                                    f'{root!r}, data_prefix.img {prefix!r}')
        known = read(path).categories
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


def _annotation_path(root: str, dataset: ConfigDict) -> str:
    name = dataset.get('ann_file')
    if isinstance(name, (list, tuple)):
        raise ValueError(several_files(name))
    if not isinstance(name, str) or not name:
        raise ValueError(f'ann_file of a {type_name(dataset.get("type"))} must be a file below data_root, got {name!r}')
    return os.path.join(root, name)


class _Annotations(NamedTuple):
    """What an annotation file says."""

    categories: tuple[str, ...]
    images: int
    #: Widths and heights of images, and areas of boxes, as far as they are numbers above 0.
    sizes: list[tuple[float, float]]
    areas: np.ndarray


def _read_annotations(path: str) -> _Annotations:
    content = read_coco(path)
    if isinstance(content, Finding):
        raise ValueError(f'annotation file {path!r} is not in COCO format: {content.where} {content.text}')
    names = tuple(name for _, name, _ in content.categories)
    if 'categories' not in content.lists or not all(isinstance(name, str) for name in names):
        raise ValueError(f'annotation file {path!r} is not in COCO format: categories must have names, got {names}')
    # The check of the data reports what is wrong with sizes and boxes; here they have no say then.
    sizes = [(width, height) for _, _, width, height, _ in content.images
             if all(isinstance(side, (int, float)) and side > 0 for side in (width, height))]
    sides = content.boxes[:, 2:]
    return _Annotations(names, len(content.images), sizes, sides[(sides > 0).all(axis=1)].prod(axis=1))


def _facts(images: int, sizes: Sequence[tuple[float, float]], areas: Sequence[float] = ()) -> DataFacts:
    width, height = ((statistics.median(side) for side in zip(*sizes)) if sizes
                     else (UNKNOWN_DATA.width, UNKNOWN_DATA.height))
    small = math.sqrt(sorted(areas)[len(areas) // 10]) if len(areas) else None
    return DataFacts(images, width, height, small)
