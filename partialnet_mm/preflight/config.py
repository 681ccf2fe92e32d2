# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of all data that a config names."""
import contextlib
import copy
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import mmengine
import PIL
from mmengine.config import Config, ConfigDict
from mmengine.fileio import get_local_path
from mmengine.registry import DATASETS, METRICS, DefaultScope

from ..config_types import find_type, type_name
from .coco import CocoCheck, CocoFile, CocoUse, check_coco_file, read_coco
from .files import Files, read_record, record_path, write_record
from .findings import Finding, errors_in
from .image_folder import check_image_folder
from .images import shortened
from .segmentation import check_segmentation

HOSTS = ('mmdet', 'mmseg', 'mmpretrain', 'mmengine', 'mmcv')
SPLITS = ('train', 'val', 'test')


def check_config(cfg: Config,
                 images: int | None = 200,
                 splits: Sequence[str] = SPLITS,
                 cached: bool = True) -> list[Finding]:
    """Checks the data of a config, without building a model or reading data into memory.

    It knows ``CocoDataset`` of mmdet, ``BaseSegDataset`` of mmseg, ``CustomDataset`` of mmpretrain and their subclasses
    that read data as they do, such as ``ADE20KDataset`` and ``ImageNet``, also inside wrappers such as RepeatDataset
    and ConcatDataset. Other data sets give a note. Images are read by the loader of their pipeline.

    A check without errors leaves a record in the user's cache folder, see :mod:`.files`. While the config, the number
    of images and the files are the same, the next check returns its findings and reads nothing.

    Args:
        cfg: Any OpenMMLab config; types may be names, names with a scope, or classes.
        images: Number of images to decode of each data set, None for all. Defaults to 200.
        splits: Splits whose data to check. Defaults to ('train', 'val', 'test').
        cached: Whether an earlier check of the same data is enough. Defaults to True.

    Returns:
        Errors and notes; data that two loaders share is checked once. An error inside the check is a note.
    """
    settings = [cfg.get('default_scope'), cfg.get('model'), cfg.get('data_preprocessor'), images, os.getcwd(),
                *(_dataset_and_evaluator(cfg, split) for split in splits),
                *((module.__name__, module.__version__) for module in (cv2, mmcv, mmengine, PIL))]
    record = record_path(settings)
    found = read_record(record) if cached else None
    if found is None:
        files = Files()
        files.reads(*map(str, Path(__file__).parent.glob('*.py')))
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            found = _ConfigChecks(cfg, images, files).run(splits)
        if not errors_in(found):
            write_record(record, files, found)
    return found


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


def several_files(ann_file: Sequence) -> str:
    """What is wrong with a list as ``ann_file``, which mmdet took before version 3."""
    return (f'ann_file is {list(ann_file)}, but it takes one file: several go into a ConcatDataset, '
            "dict(type='ConcatDataset', datasets=[dict(...), dict(...)])")


def image_folders(dataset: dict) -> list[str]:
    """Folders that a data set reads images or annotations from, by its config."""
    folders = []
    for leaf in leaf_datasets(dataset):
        prefix = leaf.get('data_prefix') or leaf.get('split') or ''
        for name in prefix.values() if isinstance(prefix, dict) else [prefix]:
            folders.append(os.path.join(leaf.get('data_root') or '', name or ''))
    return [folder for folder in folders if folder]


def _dataset_and_evaluator(cfg: Config, split: str) -> tuple:
    loader = cfg.get(f'{split}_dataloader')
    return split, loader.get('dataset') if isinstance(loader, dict) else None, cfg.get(f'{split}_evaluator')


def _loads_labels(name: str) -> bool:
    """Whether a transform is LoadAnnotations or one like it; LoadEmptyAnnotations and FilterAnnotations are not."""
    return 'Load' in name and 'Annotations' in name and 'Empty' not in name


def _host_base(kind: object, name: str, *methods: str) -> type | None:
    """The class of a host library that a class derives from, if it keeps its methods."""
    base = next((base for base in getattr(kind, '__mro__', ())
                 if base.__name__ == name and base.__module__.split('.')[0] in HOSTS), None)
    kept = base is not None and all(getattr(kind, method) is getattr(base, method) for method in methods)
    return base if kept else None


class _Loader:
    """The steps of a pipeline up to the one that loads the image; remembers how many channels there were."""

    def __init__(self, steps: Sequence[Callable]) -> None:
        self.steps, self.channels = steps, set()
        self.foreign = bool(steps) and not _is_of_host(type(steps[0]))

    def __call__(self, results: dict) -> dict | None:
        for step in self.steps:
            results = step(results)
            if results is None or 'img' in results:
                break
        if results is not None and 'img' in results:
            shape = results['img'].shape
            self.channels.add(shape[2] if len(shape) > 2 else 1)
        return results


class _ConfigChecks:

    def __init__(self, cfg: Config, images: int | None, files: Files) -> None:
        self.cfg, self.images, self.files = cfg, images, files
        self.read: dict[str, CocoFile | Finding] = {}
        self.done: list[tuple] = []
        self.with_heads: set[str] = set()  # annotation files whose classes were compared with the heads
        self.classes: dict[str, tuple] = {}  # by data set, the classes in the order of their labels

    def run(self, splits: Sequence[str]) -> list[Finding]:
        found: list[Finding] = []
        for split in splits:
            try:
                for part in self._check_split(split):
                    found += part
            except Exception as error:
                found.append(_failed(f'{split}_dataloader', error))
        found += self._check_orders()
        return found

    def _check_split(self, split: str) -> Iterator[list[Finding]]:
        _, dataset, evaluator = _dataset_and_evaluator(self.cfg, split)
        if not isinstance(dataset, dict):
            return
        leaves = list(leaf_datasets(dataset))
        metrics = self._coco_metrics(evaluator)
        images: list[CocoCheck] = []
        for leaf in leaves:
            found: list[Finding] = []
            try:
                found += self._check_leaf(leaf, split, metrics if len(leaves) == 1 else [], images)
            except Exception as error:
                found.append(_failed(str(leaf.get('data_root') or type_name(leaf.get('type'))), error))
            yield found
        if images:
            yield list(self._check_metrics(split, metrics, images, len(leaves) == 1))

    # Data sets

    def _check_leaf(self, leaf: dict, split: str, metrics: list[dict], images: list[CocoCheck]) -> list[Finding]:
        kind = find_type(leaf.get('type'), DATASETS)
        coco = _host_base(kind, 'CocoDataset', 'load_data_list', 'parse_data_info', 'filter_data')
        segmentation = _host_base(kind, 'BaseSegDataset', 'load_data_list')
        folder = _host_base(kind, 'CustomDataset', 'load_data_list')
        if not (coco or segmentation or folder):
            name = type_name(leaf.get('type'))
            return [Finding('not checked', str(leaf.get('data_root') or name), '', f'data of type {name} is not known '
                            'here', note=True)]
        with contextlib.suppress(OSError, TypeError):  # classes that are made at run time have no file
            self.files.reads(inspect.getfile(kind))
        try:
            dataset = DATASETS.build(ConfigDict(copy.deepcopy(leaf), lazy_init=True, serialize_data=False))
        except Exception as error:
            own = kind.__init__.__module__.split('.')[0] not in HOSTS
            return [Finding('data set refused', str(leaf.get('data_root') or kind.__name__), '',
                            f'{kind.__name__} cannot be built: {_refusal(leaf, error)}', note=own)]
        steps = dataset.pipeline.transforms
        load = _Loader(steps)
        given = leaf.get('pipeline') or []
        loads_labels = [step for step in dicts_with(given, 'type') if _loads_labels(type_name(step['type']))]
        learns = split == 'train' and bool(loads_labels)
        if coco:
            found = self._check_coco(dataset, leaf, load, loads_labels, learns, metrics, images, split)
        else:
            done = (leaf, learns, load.steps and len(loads_labels))
            if done in self.done:
                return []
            self.done.append(done)
            try:
                dataset.full_init()
            except Exception as error:
                where = dataset.ann_file or dataset.data_prefix.get('img_path') or ''
                return [Finding('data set refused', where, '', f'{kind.__name__} cannot read it: {shortened(error)}')]
            if segmentation:
                labels = next((step for step in steps if _loads_labels(type(step).__name__)), None)
                found = list(check_segmentation(dataset, load, labels, learns, self._outputs(
                    'decode_head', 'auxiliary_head'), self.images, self.files))
            else:
                found = list(check_image_folder(dataset, load, self._outputs('head'), self.images, self.files))
                found += self._check_mixed_labels() if split == 'train' and dataset.with_label else []
                if dataset.with_label and dataset.metainfo.get('classes'):
                    self.classes[f'{split}: {dataset.img_prefix}'] = tuple(dataset.metainfo['classes'])
        return found + self._check_channels(load, bool(coco), leaf)

    def _check_coco(self, dataset: Any, leaf: dict, load: _Loader, loads: list[dict], learns: bool, metrics: list[dict],
                    images: list[CocoCheck], split: str) -> list[Finding]:
        same = [metric for metric in metrics if _same_file(metric['ann_file'], dataset.ann_file)]
        masks = any(step.get('with_mask') for step in loads)
        folder = dataset.data_prefix['img']
        maps = dataset.data_prefix.get('seg') if any(step.get('with_seg') for step in loads) else None
        use = CocoUse(
            learns, masks, not any(step.get('poly2mask') is False for step in loads),
            tuple(name for metric in same for name in metric['metrics']), dataset.filter_cfg if not dataset.test_mode
            else None, leaf.get('indices'), (maps, dataset.seg_map_suffix) if maps else None,
            bool(same) and not all(metric['metrics'] for metric in same))
        done = (leaf, use)
        classes = dataset.metainfo.get('classes')
        content = self._read(dataset.ann_file, leaf.get('backend_args'))
        if isinstance(content, Finding):
            return [content] if done not in self.done and not self.done.append(done) else []
        local = not _is_address(folder) and not _is_address((leaf.get('backend_args') or {}).get('backend', ''))
        check = check_coco_file(content, folder, classes, use, self.images, self.files if local else None, load)
        images.append(check)
        if learns or use.metrics or use.writes:
            self.classes[f'{split}: {dataset.ann_file}'] = check.classes
        if done in self.done:
            return []
        self.done.append(done)
        return [*self._check_heads(dataset, learns or bool(metrics), masks), *check.findings]

    def _read(self, ann_file: str, backend_args: dict | None = None) -> CocoFile | Finding:
        if ann_file not in self.read:
            with get_local_path(ann_file, backend_args=backend_args) as path:
                self.files.reads(ann_file)
                content = read_coco(path)
            self.read[ann_file] = content
        return self.read[ann_file]

    # Model

    def _heads(self, *names: str) -> Iterator[tuple[str, dict]]:
        for name in names:
            for owner in dicts_with(self.cfg.get('model'), name):
                for head in owner[name] if isinstance(owner[name], (list, tuple)) else [owner[name]]:
                    if isinstance(head, dict):
                        yield name, head

    def _outputs(self, *names: str) -> int | None:
        return min((head['num_classes'] for _, head in self._heads(*names)
                    if isinstance(head.get('num_classes'), int)), default=None)

    def _check_heads(self, dataset: Any, labelled: bool, masks: bool) -> Iterator[Finding]:
        classes = dataset.metainfo.get('classes')
        if classes is None or dataset.return_classes or not labelled or dataset.ann_file in self.with_heads:
            return  # with return_classes the model gets the names, and num_classes is the most that it takes
        self.with_heads.add(dataset.ann_file)
        for name, head in self._heads('bbox_head', 'mask_head'):
            count = head.get('num_classes')
            if isinstance(count, int) and count != len(classes) and not (
                    name == 'mask_head' and (head.get('class_agnostic') or not masks)):
                yield Finding('number of classes', dataset.ann_file, f'model {name}', f'num_classes is {count}, but '
                              f'the data set has {len(classes)} classes: {list(classes)}')

    def _model(self, key: str) -> dict:
        """A dict of the model's config, or of the config itself; empty if there is none."""
        model = self.cfg.get('model')
        found = (model.get(key) if isinstance(model, dict) else None) or self.cfg.get(key)
        return found if isinstance(found, dict) else {}

    def _check_mixed_labels(self) -> list[Finding]:
        """Mixup and CutMix make vectors of labels, as long as the preprocessor says."""
        given, outputs = self._model('data_preprocessor'), self._outputs('head')
        count = given.get('num_classes')
        mixes = given.get('to_onehot') or given.get('batch_augments') or self._model('train_cfg').get('augments')
        if not mixes or not count or not outputs or count == outputs:
            return []
        return [Finding('number of classes', 'model', 'data_preprocessor', f'num_classes is {count}, but that of the '
                        f'head is {outputs}')]

    def _check_channels(self, load: _Loader, strict: bool, leaf: dict) -> list[Finding]:
        """mmdet needs as many channels as its preprocessor has means; the others spread one channel."""
        means = self._model('data_preprocessor').get('mean')
        changed = any('Gray' in type_name(step['type']) or not _is_of_host(step['type'])
                      for step in dicts_with(leaf.get('pipeline'), 'type'))
        if not isinstance(means, (list, tuple)) or len(means) == 1 or changed:
            return []
        wrong = load.channels - {len(means)} - (set() if strict else {1})
        return [Finding('image channels', str(leaf.get('data_root') or ''), 'pipeline', f'it loads images of '
                        f'{sorted(load.channels)} channels, but data_preprocessor.mean has {len(means)} numbers')
                ] if wrong else []

    # Evaluators

    def _coco_metrics(self, evaluator: Any) -> list[dict]:
        """What the metrics with an annotation file measure, nothing where they only write results."""
        if isinstance(evaluator, dict) and 'metrics' in evaluator:
            evaluator = evaluator['metrics']
        found = []
        for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
            if isinstance(metric, dict) and isinstance(metric.get('ann_file'), str) and metric['ann_file'] and \
                    _host_base(find_type(metric.get('type'), METRICS), 'CocoMetric', 'compute_metrics'):
                names = metric.get('metric', 'bbox')
                found.append(dict(ann_file=metric['ann_file'], backend_args=metric.get('backend_args'), metrics=() if
                                  metric.get('format_only') else (names, ) if isinstance(names, str) else tuple(names)))
        return found

    def _check_metrics(self, split: str, metrics: list[dict], checks: list[CocoCheck], single: bool
                       ) -> Iterator[Finding]:
        """A metric must use the annotations of the images that it evaluates."""
        where = f'{split}_evaluator'
        shown = {key: name for check in checks for key, name in check.images.items()}
        for metric in metrics:
            ann_file = metric['ann_file']
            if single and _same_file(ann_file, checks[0].ann_file):
                continue
            done = (where, ann_file, metric['metrics'])
            content = self._read(ann_file, metric['backend_args'])
            if isinstance(content, Finding):
                yield content._replace(where=f'{where} {content.where}'.strip())
                continue
            use = CocoUse(False, False, metrics=metric['metrics'], writes=not metric['metrics'])
            check = check_coco_file(content, '', checks[0].classes, use, 0, None)
            files = ', '.join(check.ann_file for check in checks)
            if not metric['metrics']:
                continue
            others = [key for key, name in shown.items()
                      if key not in check.images or not _same_name(check.images[key], name)]
            if others:
                yield Finding('evaluator', ann_file, where, f'the images come from {files}; {len(others)} of them are '
                              f'not in this file, or are others of the same id, first {shown[others[0]]!r}')
                continue
            rest = len(check.images) - len(shown)
            if rest:
                yield Finding('evaluator', ann_file, where, f'{rest} of its images are not among those of {files}; '
                              'their objects count as missed', note=True)
            if done[1:] not in [other[1:] for other in self.done]:
                self.done.append(done)
                yield from check.findings

    def _check_orders(self) -> Iterator[Finding]:
        """Label 0 must be the same class in all data sets."""
        (first, classes), *others = self.classes.items() or [('', ())]
        for name, found in others:
            if found != classes:
                yield Finding('order of classes', name, '', f'its labels are {_shown(found)}, those of {first} are '
                              f'{_shown(classes)}')


def _shown(classes: Sequence) -> str:
    return str(list(classes)) if len(classes) <= 12 else f'{list(classes[:12])} and {len(classes) - 12} more'


def _failed(where: str, error: Exception) -> Finding:
    return Finding('not checked', where, '', f'the check itself failed with {type(error).__name__}: {shortened(error)}',
                   note=True)


def _refusal(leaf: dict, error: Exception) -> str:
    if isinstance(leaf.get('ann_file'), (list, tuple)):
        return several_files(leaf['ann_file'])
    return f'{type(error).__name__}: {shortened(error)}'


def _is_address(path: str) -> bool:
    return '://' in path or path in ('petrel', 'memcached', 'lmdb', 'http')


def _is_of_host(kind: object) -> bool:
    return isinstance(kind, str) or getattr(kind, '__module__', '').split('.')[0] in HOSTS


def _same_file(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _same_name(name: object, other: object) -> bool:
    return os.path.basename(str(name)) == os.path.basename(str(other))
