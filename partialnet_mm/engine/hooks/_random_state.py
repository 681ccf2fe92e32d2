# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The random numbers of a process, as data that a checkpoint can hold."""
import random
from typing import Any

import numpy as np
import torch


def get_random_state() -> dict[str, Any]:
    """The state of Python's, numpy's and torch's generators, the CPU's and this process' GPU's.

    Returns:
        dict: Tensors and plain numbers only.
    """
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
    """Puts all generators back.

    Args:
        state: From :func:`get_random_state`; tensors may have been
            moved to another device.
    """
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers), gauss))
    keys, *rest = state['numpy']
    np.random.set_state(('MT19937', keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
