# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A trained classifier with its test pipeline, for commands that look into it."""
import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from ..checkpoint.pretrained import content_for, find_state_dict
from ..checkpoint.reader import read_checkpoint
from ..config_types import type_name

if TYPE_CHECKING:
    from mmpretrain.apis import ImageClassificationInferencer

#: Fraction of each side of an image that :func:`seen_box` does not measure at: resizing repeats the border.
BORDER = 0.1


def load_classifier(cfg: Config, checkpoint: str, device: str = 'cpu') -> 'ImageClassificationInferencer':
    """mmpretrain's inferencer of a classifier's config, with the weights of a checkpoint that must hold every tensor.

    ``cfg`` has been read from a file, which the errors name.
    Its ``model`` is in evaluation mode, ``preprocess`` is the config's test pipeline, and ``classes`` is None where the
    checkpoint names none. Afterwards mmengine's default scope is 'mmpretrain'.
    """
    config = cfg.filename
    if cfg.get('default_scope') != 'mmpretrain' or not cfg.get('model', {}).get('head'):
        raise ValueError(f'config {config!r} is of no classifier: it needs default_scope \'mmpretrain\' and a model '
                         f'with a head, got default_scope {cfg.get("default_scope")!r} and a model with '
                         f'{sorted(cfg.get("model", {}))}')
    if not cfg.get('test_dataloader', {}).get('dataset', {}).get('pipeline'):
        raise ValueError(f'config {config!r} has no test_dataloader.dataset.pipeline, which prepares images')
    content = content_for(cfg.model, read_checkpoint(checkpoint), checkpoint)
    tensors = find_state_dict(content)
    init_default_scope(cfg.default_scope)
    from mmpretrain.apis import ImageClassificationInferencer
    for step in cfg.test_dataloader.dataset.pipeline:
        if type_name(step.get('type')) == 'LoadImageFromFile':
            step['type'] = 'LoadImageFromFile'  # the inferencer, which loads images itself, finds it by this name only
    classes = (content.get('meta') or {}).get('dataset_meta', {}).get('classes')
    inferencer = ImageClassificationInferencer(cfg, pretrained=False, device=device, classes=classes)
    try:
        inferencer.model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f'checkpoint {checkpoint!r} belongs to another network than {config!r}: '
                         f'{str(error)[:600]}') from error
    return inferencer


def prepare(classifier: 'ImageClassificationInferencer', images: Sequence[str | np.ndarray]) -> Tensor:
    """Images, files or (H, W, 3) in BGR, after test pipeline and normalization: (B, C, H, W) on the model's device."""
    batches = [classifier.model.data_preprocessor(data, False)['inputs'] for data in classifier.preprocess(images)]
    shapes = {tuple(batch.shape[1:]) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(f'the test pipeline returns different sizes of images, {sorted(shapes)}: look at one at a '
                         'time')
    return torch.cat(batches)


def seen_box(classifier: 'ImageClassificationInferencer', height: int, width: int) -> tuple[int, int, int, int]:
    """The rectangle of an image of so many pixels that the test pipeline passes to the network.

    Returns left, top, right and bottom in pixels, right and bottom exclusive. An image of known ramps goes through the
    pipeline, so the result holds for any pipeline that keeps horizontal lines horizontal and flips nothing.
    """
    ramps = np.zeros((height, width, 3), np.uint8)
    ramps[..., 0] = np.round(np.linspace(0, 255, width))
    ramps[..., 1] = np.round(np.linspace(0, 255, height))[:, None]
    seen = next(classifier.preprocess([ramps]))['inputs'][0].double().numpy()
    bounds = []
    for values, size in ((seen[0].mean(axis=0), width), (seen[1].mean(axis=1), height)):
        margin = int(len(values) * BORDER)
        positions = np.arange(margin, len(values) - margin)
        slope, offset = np.polyfit(positions, values[positions] * (size - 1) / 255, 1)
        first, last = offset + slope * np.array([-0.5, len(values) - 0.5]) + 0.5
        # A bound that lies within half a pixel of the network's input from the border is the border.
        bounds.append((0 if first < slope / 2 else round(first), size if last > size - slope / 2 else round(last)))
    (left, right), (top, bottom) = bounds
    return left, top, right, bottom


def find_class(classes: Sequence[str] | None, count: int, given: str) -> int:
    """The index of a class by its name or index; ``classes`` are the names of ``count`` classes, None if unknown."""
    names: list[str] = list(classes or ())
    if given in names:
        return names.index(given)
    if given.isdigit() and int(given) < count:
        return int(given)
    near = difflib.get_close_matches(given, names, n=3) or names[:12]
    raise ValueError(f'class {given!r} is unknown; allowed are 0 to {count - 1}'
                     f'{f" and names, such as {near}" if names else ""}')
