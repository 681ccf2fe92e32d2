# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The state of a training as plain data, which a checkpoint can hold and a strict reader accepts, and back."""
from collections import Counter, deque
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def to_plain(value: Any) -> Any:
    """Turns a value into tensors, numbers, strings, lists, tuples and dicts.

    Arrays become nested lists, sets and other sequences become lists, and
    subclasses become the type that they extend.

    Raises:
        TypeError: If a value is none of these, with its type.
    """
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, (np.generic, np.ndarray)):
        return to_plain(value.tolist())
    for kind in (bool, int, float, str, bytes):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    if isinstance(value, (list, set, frozenset, deque)):
        return [to_plain(item) for item in value]
    raise TypeError(f'{type(value).__module__}.{type(value).__qualname__} is not plain data')


def plain_checkpoint(checkpoint: dict, drop: Callable[[str, str], None]) -> dict:
    """All of a checkpoint as plain data; weights keep torch's own form.

    Args:
        checkpoint: As mmengine's runner builds it.
        drop: Called with the name and the reason of each entry that cannot be
            plain data and is left out.
    """
    plain: dict = {}
    for key, value in checkpoint.items():
        if key.endswith('state_dict'):
            plain[key] = value
        elif key == 'message_hub':
            plain[key] = _plain_hub(value, drop)
        elif key == 'param_schedulers':
            plain[key] = _for_schedulers(value, _plain_scheduler)
        elif key == 'meta':
            plain[key] = _plain_items(value, 'meta', drop)
        else:
            plain.update(_plain_items({key: value}, '', drop))
    return plain


def _plain_items(items: Mapping, name: str, drop: Callable[[str, str], None]) -> dict:
    plain = {}
    for key, value in items.items():
        try:
            plain[key] = to_plain(value)
        except TypeError as error:
            drop(f'{name}.{key}' if name else key, str(error))
    return plain


def _plain_hub(hub: Mapping, drop: Callable[[str, str], None]) -> dict:
    buffers = {}
    for name, buffer in hub['log_scalars'].items():
        history, counts = (torch.from_numpy(np.asarray(data, np.float64)) for data in buffer.data)
        buffers[name] = dict(history=history, counts=counts, max_length=int(buffer.max_length))
    info = _plain_items(hub['runtime_info'], 'message_hub', drop)
    kept = {*buffers, *info}
    resumed = {key: bool(value) for key, value in hub['resumed_keys'].items() if key in kept}
    return dict(log_scalars=buffers, runtime_info=info, resumed_keys=resumed)


def restore_hub(hub: Mapping) -> dict:
    """The state of mmengine's message hub: log buffers from what :func:`plain_checkpoint` wrote, or from mmengine's.

    A log buffer is built anew in either case, so that a checkpoint cannot bring
    methods.

    Raises:
        ValueError: If it is no such state.
    """
    try:
        buffers = {name: _restore_buffer(buffer) for name, buffer in hub['log_scalars'].items()}
        return dict(log_scalars=buffers, runtime_info=dict(hub['runtime_info']), resumed_keys=dict(hub['resumed_keys']))
    except (KeyError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise ValueError(f'its message_hub is damaged ({type(error).__name__}: {error})') from error


def _restore_buffer(buffer: Any) -> HistoryBuffer:
    if isinstance(buffer, HistoryBuffer):
        history, counts = buffer.data
        length = buffer.max_length
    else:
        history, counts = (buffer[key].cpu().numpy() for key in ('history', 'counts'))
        length = buffer['max_length']
    return HistoryBuffer(np.asarray(history, np.float64), np.asarray(counts, np.float64), int(length))


def restore_schedulers(states: Any, schedulers: Any) -> Any:
    """State dicts for the schedulers of a training, of what they can take.

    What a scheduler computes with stays as its constructor made it from the
    config: functions are no state, and a checkpoint cannot replace a method.

    Args:
        states: From a checkpoint: a list, or a dict of lists.
        schedulers: The schedulers, in the same structure.

    Raises:
        ValueError: If the structures differ.
    """
    if isinstance(schedulers, Mapping):
        if not isinstance(states, Mapping) or set(states) != set(schedulers):
            raise ValueError('its param_schedulers belong to another config')
        return {name: restore_schedulers(states[name], own) for name, own in schedulers.items()}
    if not isinstance(states, (list, tuple)) or len(states) != len(schedulers) or not all(
            isinstance(state, Mapping) for state in states):
        raise ValueError(f'its param_schedulers belong to another config, which has {len(schedulers)}')
    return [_restore_scheduler(state, own) for state, own in zip(states, schedulers)]


def _restore_scheduler(state: Mapping, scheduler: Any) -> dict:
    restored = {}
    for key, value in state.items():
        own = getattr(scheduler, str(key), None)
        if key == 'optimizer' or callable(value) or callable(own):
            continue
        # The milestones of MultiStepLR.
        restored[key] = Counter(value) if isinstance(own, Counter) and isinstance(value, Mapping) else value
    return restored


def _plain_scheduler(state: Mapping) -> dict:
    return _plain_items(state, '', lambda name, reason: None)


def _for_schedulers(states: Any, convert: Callable[[Mapping], dict]) -> Any:
    if isinstance(states, Mapping):
        return {name: [convert(state) for state in group] for name, group in states.items()}
    return [convert(state) for state in states]
