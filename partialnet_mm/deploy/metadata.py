# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What the ONNX file of a whole model says of itself: classes, colours, thresholds, the steps before the network."""
import json
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from torch import nn

from partialnet_mm.config_types import type_name
from partialnet_mm.deploy.whole_model import WholeModel, min_size
from partialnet_mm.preflight.config import leaf_datasets
from partialnet_mm.version import __version__

#: Score from which a reader draws a detection, as mmdet's inferencer does.
SCORE_THRESHOLD = 0.3
#: Transforms of a test that do not touch the image.
WITHOUT_EFFECT = ('LoadAnnotations', 'PackInputs', 'PackDetInputs', 'PackSegInputs')
PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain', 'onnx', 'onnxruntime')


def describe(cfg: Config, model: nn.Module, whole: WholeModel, meta: dict) -> dict[str, Any]:
    """The metadata of a whole model's file, before its values become texts.

    Args:
        cfg: Config of the model.
        model: The model of the config.
        whole: The function that is exported.
        meta: ``meta`` of the checkpoint, {} without one.

    Raises:
        ValueError: If the config's test pipeline does something to images that the file cannot tell a reader.
    """
    dataset = _test_dataset(cfg)
    number = _number_of_classes(model)
    classes, palette = _classes_and_palette(cfg, dataset, meta, number)
    steps, exif = preprocessing(cfg, dataset)
    normalize = whole.normalize
    found = dict(
        task=whole.task, classes=classes, palette=palette, category_ids=_category_ids(dataset, classes),
        score_threshold=SCORE_THRESHOLD, mask_threshold=_mask_threshold(model), mean=normalize.mean.flatten().tolist(),
        std=normalize.std.flatten().tolist(), channel_order=normalize.order, preprocessing=steps, exif=exif,
        min_size=min_size(whole), outputs=list(whole.outputs), versions=versions())
    return {name: value for name, value in found.items() if value is not None}


def as_texts(metadata: dict[str, Any]) -> dict[str, str]:
    """Metadata as ONNX files hold it: texts as they are, all else as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


def versions() -> dict[str, str]:
    """Versions of the packages that a file was made with."""
    found = dict(partialnet_mm=__version__, torch=torch.__version__)
    for name in PACKAGES:
        for published in (name, f'onedl-{name}'):
            try:
                found[name] = version(published)
            except PackageNotFoundError:
                continue
    return found


def preprocessing(cfg: Config, dataset: dict | None = None) -> tuple[list[dict], bool]:
    """The geometric steps of the config's test pipeline, and whether its loader turns images by their EXIF data.

    Args:
        cfg: With the default_scope that the transforms belong to.
        dataset: The data set of a test. Defaults to that of the config.

    Raises:
        ValueError: If a step is not one of those that a reader of the file can do.
    """
    init_default_scope(cfg.default_scope)
    dataset = _test_dataset(cfg) if dataset is None else dataset
    pipeline = (dataset or {}).get('pipeline') or cfg.get('test_pipeline')
    if not pipeline:
        raise ValueError('the config has no test pipeline: test_dataloader.dataset.pipeline or test_pipeline')
    steps: list[dict] = []
    exif = True
    for step in pipeline:
        name = type_name(step['type'])
        if name in WITHOUT_EFFECT:
            continue
        if any(value == 'auto' for value in step.values()):
            raise ValueError(f"the test pipeline's {name} has 'auto', which a training replaces: name the config that "
                             'the training saved in its work folder')
        if name not in _STEPS and name != 'LoadImageFromFile':
            raise ValueError(f'the test pipeline has {name}, which a reader of the ONNX file cannot do; what it can: '
                             f'{", ".join(_STEPS)}')
        transform = TRANSFORMS.build(step)
        if name == 'LoadImageFromFile':
            exif = _turns_by_exif(transform)
        else:
            steps.append(_STEPS[name](transform))
    return steps, exif


def _turns_by_exif(loader: Any) -> bool:
    if loader.color_type not in ('color', 'color_ignore_orientation'):
        raise ValueError(f"the test pipeline's LoadImageFromFile has color_type={loader.color_type!r}; a reader of the "
                         "ONNX file loads 'color' or 'color_ignore_orientation'")
    return loader.color_type == 'color' and loader.imdecode_backend in ('cv2', 'pillow')


def _resize(transform: Any) -> dict:
    if transform.scale is None:
        raise ValueError(f"the test pipeline's Resize has scale_factor={transform.scale_factor}; a reader of the ONNX "
                         'file resizes to a scale')
    return dict(type='resize', size=_pair(transform.scale), keep_ratio=bool(transform.keep_ratio),
                interpolation=transform.interpolation, backend=transform.backend)


def _resize_edge(transform: Any) -> dict:
    return dict(type='resize_edge', edge=transform.edge, size=transform.scale, interpolation=transform.interpolation,
                backend=transform.backend)


def _fast_resize_edge(transform: Any) -> dict:
    return dict(type='resize_edge', edge='short', size=transform.scale, interpolation=transform.interpolation,
                backend='pillow')


def _center_crop(transform: Any) -> dict:
    if transform.auto_pad:
        raise ValueError("the test pipeline's CenterCrop has auto_pad=True, which a reader of the ONNX file cannot do")
    return dict(type='center_crop', size=_pair(transform.crop_size))


def _pad(transform: Any) -> dict:
    if transform.padding_mode != 'constant' or transform.pad_to_square:
        raise ValueError(f"the test pipeline's Pad has padding_mode={transform.padding_mode!r} and pad_to_square="
                         f'{transform.pad_to_square}; a reader of the ONNX file pads with a constant to a size or '
                         'divisor')
    value = transform.pad_val.get('img', 0)
    # The host pads BGR images.
    colour = [int(value)] * 3 if isinstance(value, (int, float)) else [int(level) for level in value][::-1]
    where = dict(divisor=transform.size_divisor) if transform.size is None else dict(size=_pair(transform.size))
    return dict(type='pad', value=colour, **where)


#: Transforms that a reader of the file does before the network.
_STEPS = dict(Resize=_resize, ResizeEdge=_resize_edge, FastResizeEdge=_fast_resize_edge, CenterCrop=_center_crop,
              Pad=_pad)


def _pair(size: int | Sequence[int]) -> list[int]:
    return [int(size)] * 2 if isinstance(size, int) else [int(side) for side in size]


def _test_dataset(cfg: Config) -> dict | None:
    """The first data set of the config's test, outside of wrappers."""
    loader = cfg.get('test_dataloader')
    return next(leaf_datasets(loader['dataset']), None) if loader and loader.get('dataset') else None


def _number_of_classes(model: nn.Module) -> int:
    head = next(module for name in ('roi_head', 'bbox_head', 'decode_head', 'head')
                if (module := getattr(model, name, None)) is not None)
    head = getattr(head, 'bbox_head', head)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    return head.num_classes


def _classes_and_palette(cfg: Config, dataset: dict | None, meta: dict,
                         number: int) -> tuple[list[str], list[list[int]] | None]:
    """Names and colours: of the checkpoint, the config, or the data set's class; numbers where none has them."""
    kind = DATASETS.get(type_name(dataset['type'])) if dataset and dataset.get('type') else None
    sources = [meta.get('dataset_meta') or {}, (dataset or {}).get('metainfo') or {}, getattr(kind, 'METAINFO', {})]
    for source in sources:
        source = {name.lower(): value for name, value in source.items()}
        classes = source.get('classes')
        if isinstance(classes, (list, tuple)) and len(classes) == number:
            palette = source.get('palette')
            fits = isinstance(palette, (list, tuple)) and len(palette) >= number
            return list(map(str, classes)), [[int(level) for level in colour] for colour in
                                             palette[:number]] if fits else None
    return [str(label) for label in range(number)], None


def _category_ids(dataset: dict | None, classes: list[str]) -> list[int] | None:
    """The ids that the annotation file of the test in COCO's format gives to the classes."""
    path = os.path.join((dataset or {}).get('data_root') or '', (dataset or {}).get('ann_file') or '')
    if not path.endswith('.json') or not os.path.isfile(path):
        return None
    with open(path, encoding='utf-8') as file:
        content = json.load(file)
    categories = content.get('categories') if isinstance(content, dict) else None
    ids = {category['name']: category['id'] for category in categories or ()}
    return [ids[name] for name in classes] if set(classes) <= set(ids) else None


def _mask_threshold(model: nn.Module) -> float:
    test_cfg = getattr(getattr(model, 'roi_head', None), 'test_cfg', None) or {}
    return float(test_cfg.get('mask_thr_binary', 0.5))
