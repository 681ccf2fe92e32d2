# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A runner for data of one's own: three settings of a config reach all the places that need them."""
import copy
import json
import os
from collections.abc import Iterator, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import Runner


@RUNNERS.register_module()
class CocoFormatRunner(Runner):
    """mmengine's runner for a COCO-format config that names its data in three places.

    A config with ``runner_type='CocoFormatRunner'`` has at its top level
    ``data_root``, ``classes`` and ``checkpoint``; each can be given by
    ``--cfg-options``. They are written where mmdet needs them, the number of
    classes too, and checked against the annotation files before anything is
    built. The config that the work folder keeps has everything written out.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> 'CocoFormatRunner':
        """Builds the runner from a config.

        Args:
            cfg: With ``data_root``, ``classes`` and ``checkpoint``.

        Returns:
            CocoFormatRunner: The runner.

        Raises:
            ValueError: If classes are missing or not in the annotations.
            FileNotFoundError: If the data root, an annotation file or a folder
                of images does not exist.
        """
        return super().from_cfg(spread_data_settings(cfg))


def spread_data_settings(cfg: Config) -> Config:
    """Writes ``data_root``, ``classes`` and ``checkpoint`` where mmdet reads them.

    Args:
        cfg: With the three at its top level; ``classes`` may be None
            for all categories of the training annotations, ``checkpoint`` None
            for random weights.

    Returns:
        Config: A copy in which every data set has root and classes, every
        evaluator its file, every head the number of classes, and the backbone
        the checkpoint.

    Raises:
        ValueError: If classes are missing or not in the annotations.
        FileNotFoundError: If the data root, an annotation file or a folder of
            images does not exist.
    """
    cfg = copy.deepcopy(cfg)
    root = cfg.data_root
    if not os.path.isdir(root):
        raise FileNotFoundError(f'data_root {root!r} is not a folder: name yours by --cfg-options data_root=FOLDER')
    loaders = [name for name in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg.get(name)]
    datasets = [_innermost(cfg[name].dataset) for name in loaders]
    categories = [_read_categories(dataset, root) for dataset in datasets]
    classes = _as_classes(cfg.get('classes')) or categories[0]
    for dataset, known in zip(datasets, categories):
        unknown = [name for name in classes if name not in known]
        if unknown:
            raise ValueError(f'classes {unknown} are not among the categories of '
                             f'{os.path.join(root, dataset.ann_file)!r}: {known}')
        dataset.data_root = root
        dataset.metainfo = dict(classes=tuple(classes))
    for split in ('val', 'test'):
        if cfg.get(f'{split}_evaluator'):
            dataset = _innermost(cfg[f'{split}_dataloader'].dataset)
            cfg[f'{split}_evaluator'].ann_file = os.path.join(root, dataset.ann_file)
    for head in _dicts_with(cfg.model, 'num_classes'):
        head.num_classes = len(classes)
    if cfg.get('checkpoint'):
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=cfg.checkpoint, prefix='backbone.')
    return cfg


def _innermost(dataset: ConfigDict) -> ConfigDict:
    """The data set inside wrappers such as RepeatDataset."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def _as_classes(classes: object) -> tuple[str, ...] | None:
    """A lone name on the command line is a text, not a list of letters."""
    if classes is None:
        return None
    names: Sequence[str] = (classes, ) if isinstance(classes, str) else tuple(classes)  # type: ignore[arg-type]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"classes must be names, e.g. --cfg-options \"classes=['cat','dog']\", got {classes!r}")
    return tuple(names)


def _read_categories(dataset: ConfigDict, root: str) -> list[str]:
    path = os.path.join(root, dataset.ann_file)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'annotation file {path!r} does not exist: data_root is {root!r}, '
                                f'ann_file {dataset.ann_file!r}')
    images = os.path.join(root, dataset.data_prefix.img)
    if not os.path.isdir(images):
        raise FileNotFoundError(f'image folder {images!r} does not exist: data_root is {root!r}, '
                                f'data_prefix.img {dataset.data_prefix.img!r}')
    try:
        with open(path) as file:
            return [category['name'] for category in json.load(file)['categories']]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'annotation file {path!r} is not in COCO format: {type(error).__name__}: {error}') from error


def _dicts_with(node: object, key: str) -> Iterator[ConfigDict]:
    if isinstance(node, dict):
        if key in node:
            yield node
        children: Sequence[object] = list(node.values())
    else:
        children = node if isinstance(node, (list, tuple)) else ()
    for child in children:
        yield from _dicts_with(child, key)
