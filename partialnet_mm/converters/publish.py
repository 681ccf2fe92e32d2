# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The content of a training's checkpoint that others need: weights, and what describes them."""
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.pretrained import find_state_dict, shorten

#: Keys of 'meta' that are kept. The others belong to the training, and to the machine that it ran on.
KEPT_META = ('dataset_meta', 'backbone', 'epoch', 'iter', 'mmengine_version')
#: Largest array in 'meta', in bytes.
MAX_ARRAY = 1 << 20


def strip_checkpoint(content: dict, no_ema: bool = False) -> dict[str, dict]:
    """The weights of a checkpoint and the plain data that describes them, without the rest.

    Args:
        content: What was read. Where mmengine's EMAHook averaged the
            weights, 'state_dict' holds the averages and 'ema_state_dict' the
            weights of the last step.
        no_ema: Whether to take the weights of the last step instead of
            their averages. Defaults to False.

    Returns:
        'state_dict' of tensors, each with a storage of its own, and 'meta' of
        text, numbers, and lists and dicts of them.

    Raises:
        ValueError: If a weight is no tensor or not finite, ``no_ema`` finds no
            such weights, or meta.dataset_meta is not plain data.
    """
    weights = find_state_dict(content)
    if no_ema:
        averaged = content.get('ema_state_dict')
        if not isinstance(averaged, dict):
            raise ValueError("no_ema (--no-ema): there is no 'ema_state_dict', so no averages were taken")
        last = {name[len('module.'):]: value for name, value in averaged.items() if name.startswith('module.')}
        if set(last) != set(weights):
            raise ValueError("no_ema (--no-ema): 'ema_state_dict' has other tensors than 'state_dict': "
                             f'{shorten(sorted(set(last) ^ set(weights)))}')
        weights = last
    wrong = [f'{name} is a {type(value).__name__}' for name, value in weights.items() if not isinstance(value, Tensor)]
    wrong += [f'{name} is not finite' for name, value in weights.items()
              if isinstance(value, Tensor) and not torch.isfinite(value).all()]
    if wrong or not weights:
        raise ValueError(f'no weights to publish: {shorten(wrong) or "there are none"}')
    meta = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    return dict(
        # A copy leaves behind what a view is part of, which would be saved with it.
        state_dict={name: value.detach().clone() for name, value in weights.items()},
        meta={key: _plain(meta[key], f'meta.{key}') for key in KEPT_META if key in meta})


def _plain(value: Any, name: str) -> Any:
    """The same value in Python's own types, which every reader of tensors accepts."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):  # numpy's numbers inherit from Python's
        if value.nbytes > MAX_ARRAY:
            raise ValueError(f'{name} is an array of {value.nbytes} bytes; at most {MAX_ARRAY} can be published')
        return value.tolist()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {_plain(key, f'a key of {name}'): _plain(item, f'{name}.{key}') for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(_plain(v, f'{name}[{i}]') for i, v in enumerate(value))
    raise ValueError(f'{name} is a {type(value).__name__}: only text, numbers, and lists and dicts of them can be '
                     'published')
