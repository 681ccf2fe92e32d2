# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Test-time augmentation: merged predictions of several sizes of an image and of their mirror images."""
import copy
from collections.abc import Iterator, Sequence

from mmengine.config import Config, ConfigDict

from ...config_types import type_name
from ...preflight import leaf_datasets
from .config_file import ConfigError

#: The model that merges predictions, where the config has no tta_model.
MODELS = dict(
    mmdet=dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    mmseg=dict(type='SegTTAModel'),
    mmpretrain=dict(type='AverageClsScoreTTA'))
#: What a merging model needs to know of each prediction.
FLIP_KEYS = ('flip', 'flip_direction')


def augment_test(cfg: Config) -> Iterator[str]:
    """Changes a config so that its test merges the predictions of several versions of each image.

    ``tta_model`` and ``tta_pipeline`` of the config are used as the libraries' own tools use them. Without
    ``tta_pipeline``, each image is taken at the sizes of ``tta_ratios`` (by default 1) times that of the test pipeline,
    and mirrored. mmdet merges boxes only, so masks are neither predicted nor evaluated.

    Args:
        cfg: A whole config; it is changed.

    Yields:
        A sentence for what is left out.

    Raises:
        ConfigError: If there is no model that merges, or no test pipeline.
    """
    scope = cfg.get('default_scope')
    if not cfg.get('tta_model') and scope not in MODELS:
        raise ConfigError(f'--tta: the config has no tta_model, and default_scope is {scope!r}; without tta_model it '
                          f'must be one of {", ".join(MODELS)}')
    for dataset in leaf_datasets(cfg.test_dataloader.dataset):
        if not dataset.get('pipeline'):
            raise ConfigError('--tta: a data set of test_dataloader has no pipeline')
        dataset.pipeline = cfg.get('tta_pipeline') or augmented(dataset.pipeline, cfg.get('tta_ratios') or (1, ))
    model = copy.deepcopy(cfg.model)
    if scope == 'mmdet':
        if (model.get('roi_head') or {}).get('mask_head'):
            model.roi_head.update(mask_head=None, mask_roi_extractor=None)
        for metric in cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]:
            names = metric.get('metric')
            if 'segm' in (names or ()):
                metric.metric = [name for name in ([names] if isinstance(names, str) else names) if name != 'segm']
                yield '--tta: mmdet merges boxes only; masks are not evaluated'
    cfg.model = ConfigDict(cfg.get('tta_model') or MODELS[scope], module=model)


def augmented(pipeline: Sequence[dict], ratios: Sequence[float]) -> list[dict]:
    """A test pipeline with several versions of each image.

    Args:
        pipeline: Steps from the loading to the packing of an image.
        ratios: Sizes of the versions as multiples of what the pipeline's Resize gives; without a Resize there is one
            version. Each is flipped, too.
    """
    steps = copy.deepcopy(list(pipeline))
    loads = [step for step in steps if type_name(step.get('type')).startswith('Load') and not _loads_annotations(step)]
    later = steps[len(loads):]
    resize = next((step for step in later if type_name(step.get('type')) == 'Resize'), None)
    if steps[:len(loads)] != loads:
        raise ConfigError('--tta: the test pipeline does not begin with the loading of the image; set tta_pipeline')
    before = later[:later.index(resize)] if resize is not None else []
    # A mirror image must come before padding, and before annotations, with which the merged prediction is compared.
    after = [step for step in before if _loads_annotations(step)] + later[len(before) + (resize is not None):]
    for step in after:
        if type_name(step.get('type')) == 'Pad' and step.get('size'):
            step['size'] = _scaled(step['size'], max(ratios))
    if 'meta_keys' in after[-1]:
        after[-1]['meta_keys'] = (*after[-1]['meta_keys'], *(key for key in FLIP_KEYS
                                                             if key not in after[-1]['meta_keys']))
    versions = [[step] for step in before if not _loads_annotations(step)]
    if resize is not None:
        versions.append([dict(resize, **{key: _scaled(resize[key], ratio) for key in ('scale', 'scale_factor')
                                         if resize.get(key)}) for ratio in ratios])
    flips = [dict(type='RandomFlip', prob=probability, direction='horizontal') for probability in (0., 1.)]
    return [*loads, dict(type='TestTimeAug', transforms=[*versions, flips, *([step] for step in after)])]


def _loads_annotations(step: dict) -> bool:
    return 'Annotations' in type_name(step.get('type'))


def _scaled(size: float | Sequence[float], ratio: float) -> float | tuple:
    """A size in pixels, or a factor, times a ratio."""
    if isinstance(size, (list, tuple)):
        return tuple(_scaled(side, ratio) for side in size)
    return round(size * ratio) if isinstance(size, int) else size * ratio
