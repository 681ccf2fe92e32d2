# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The random numbers of a process, as data that a checkpoint can hold."""
import random
from typing import Any

import numpy as np
import torch


def get_random_state() -> dict[str, Any]:
    """The state of the generators of Python, numpy and torch, and of this process' GPU, as tensors and numbers."""
    _, keys, *rest = np.random.get_state()
    version, numbers, gauss = random.getstate()
    state = dict(
        python=[version, list(numbers), gauss],
        numpy=[torch.from_numpy(keys.astype(np.int64)), *rest],
        torch=torch.get_rng_state())
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restores all generators.

    Args:
        state: From :func:`get_random_state`; its tensors may be on another
            device.
    """
    _set(state, random, np.random, torch.set_rng_state)
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def check_random_state(state: Any) -> None:
    """Raises a ValueError if :func:`set_random_state` could not restore a state; it changes no generator in use."""
    try:
        _set(state, random.Random(), np.random.RandomState(), torch.Generator().set_state)
    except Exception as error:  # each generator raises types of its own
        raise ValueError(f'its random state is damaged ({type(error).__name__}: {error})') from error


def _set(state: dict[str, Any], python: Any, numpy: Any, set_torch: Any) -> None:
    version, numbers, gauss = state['python']
    python.setstate((version, tuple(numbers), gauss))
    keys, *rest = state['numpy']
    numpy.set_state(('MT19937', keys.cpu().numpy().astype(np.uint32), *rest))
    set_torch(state['torch'].cpu())
