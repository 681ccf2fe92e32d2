# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Which checkpoint of a folder a training goes on from."""
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .errors import CheckpointError
from .reader import read_checkpoint

#: mmengine's name for the file that names the newest checkpoint.
POINTER = 'last_checkpoint'

Position = tuple[int, int]


class Choice(NamedTuple):
    """The checkpoint to resume from and its content, or None for both.

    ``skipped`` are newer checkpoints that cannot be used, each with its reason.
    ``left`` are newer checkpoints of other trainings.
    """

    path: str | None
    content: dict | None
    skipped: list[tuple[str, str]]
    left: list[str]


def choose_checkpoint(folder: str, template: str, verify: Callable[[str], dict], pointer: str | None = None) -> Choice:
    """Finds the newest checkpoint of the training that was last in a folder.

    Newest is the one with most epochs and iterations in its name, so new dates
    after a copy do not matter. Checkpoints of other trainings, which lie in the
    folder from before, are left: the training is that of the checkpoint that
    ``pointer`` names. If this one cannot be used, only those before it count. A
    pointer to a file that does not exist is ignored.

    Args:
        folder: Folder of the checkpoints.
        template: Their names, with ``{}`` for the number, such as
            'epoch_{}.pth'.
        verify: Returns the content of a checkpoint, or raises a ValueError if
            it cannot be used.
        pointer: Content of the pointer file. Only its file name counts, since
            the folder may have moved.

    Returns:
        The checkpoint, and what was passed over.
    """
    names = list_checkpoints(folder, template)
    named = os.path.basename(pointer or '')
    first = names.index(named) if named in names else 0
    skipped: list[tuple[str, str]] = []

    def usable(name: str) -> dict | None:
        path = os.path.join(folder, name)
        try:
            return verify(path)
        except ValueError as error:
            skipped.append((path, str(error)))
            return None

    chosen, content = next(((name, found) for name in names[first:] if (found := usable(name)) is not None),
                           (None, None))
    left = []
    for name in names[:first]:
        found = usable(name)
        if found is not None and chosen == names[first] and same_run(found['meta'], content['meta']):
            chosen, content = name, found
            break
        if found is not None:
            left.append(os.path.join(folder, name))
    return Choice(chosen and os.path.join(folder, chosen), content, skipped, left)


def same_run(meta: dict, last: dict) -> bool:
    """Whether a checkpoint belongs to the training of another checkpoint.

    A training that resumes a checkpoint named by the user is a run of its own,
    a fork: what the former run did after that checkpoint does not belong to it.

    Args:
        meta: ``meta`` of the checkpoint.
        last: ``meta`` of a checkpoint of the training.
    """
    run = meta.get('run')
    return run == last.get('run') or any(run == former and meta['iter'] <= until
                                         for former, until in last.get('forked_from', ()))


def list_checkpoints(folder: str, template: str) -> list[str]:
    """Names of the checkpoints of a folder, newest first.

    Args:
        folder: Folder to look into; it need not exist.
        template: As for :func:`choose_checkpoint`. The number may be
            followed by ``_iter_`` and the iterations, see
            :func:`position_in_name`.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    positions = {name: position_of(name, template) for name in names}
    return sorted((name for name in names if positions[name] is not None), key=positions.get, reverse=True)


def position_of(name: str, template: str) -> Position | None:
    """Epochs and iterations in the name of a checkpoint, or None if it is not the name of one."""
    match = re.fullmatch(name_pattern(template), name)
    return match and (int(match.group(1)), int(match.group(2) or 0))


def name_pattern(template: str) -> str:
    """A regular expression for the names that a template gives, with groups for epochs and iterations."""
    return re.escape(template).replace(r'\{\}', r'([0-9]+)(?:_iter_([0-9]+))?')


def position_in_name(epochs: int, iterations: int) -> str:
    """The number in the name of a checkpoint from the middle of an epoch.

    Args:
        epochs: Epochs that are complete.
        iterations: Iterations since the start of the training.

    Returns:
        Such as '3_iter_1234', newer than '3', older than '4'.
    """
    return f'{epochs}_iter_{iterations}'


def verify_checkpoint(path: str, model: nn.Module, trust: bool = False) -> dict[str, Any]:
    """Reads a checkpoint and makes sure that a training can resume it exactly.

    It must hold the weights of all parameters and buffers of the model, in
    their shapes, and the state of the training.

    Args:
        path: A local file.
        model: The model that resumes.
        trust: As of :func:`read_checkpoint`. Defaults to False.

    Returns:
        Content of the checkpoint.

    Raises:
        ValueError: With what is wrong.
    """
    try:
        checkpoint = read_checkpoint(path, trust)
    except CheckpointError as error:
        raise ValueError('it ' + str(error).removeprefix(f'checkpoint {path!r} ')) from error
    _check_training(checkpoint)
    given = checkpoint['state_dict']
    for name, own in model.state_dict().items():
        value = given.get(name)
        if not isinstance(value, torch.Tensor) or not isinstance(own, torch.Tensor):
            if name not in given or isinstance(own, torch.Tensor):
                raise ValueError(f'it belongs to another network: it has no {name}')
        elif value.shape != own.shape:
            raise ValueError(f'it belongs to another network: {name} is {tuple(value.shape)}, '
                             f'the model of this config has {tuple(own.shape)}')
    return checkpoint


def _check_training(checkpoint: dict) -> None:
    """Raises a ValueError unless the state of a training is there and has the right types."""
    required = dict(state_dict=dict, meta=dict, message_hub=dict, optimizer=dict)
    missing = [key for key in required if key not in checkpoint]
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        missing += [f'meta.{key}' for key in ('epoch', 'iter') if key not in meta]
    if missing:
        raise ValueError(f'it has no {", ".join(missing)}: it holds weights, but no training to go on with')
    wrong = [key for key, kind in required.items() if not isinstance(checkpoint[key], kind)]
    if isinstance(meta, dict):
        wrong += [f'meta.{key}' for key in ('epoch', 'iter') if type(meta[key]) is not int or meta[key] < 0]
        forks = meta.get('forked_from', [])
        if not isinstance(forks, (list, tuple)) or not all(
                isinstance(fork, (list, tuple)) and len(fork) == 2 and type(fork[1]) is int for fork in forks):
            wrong.append('meta.forked_from')
    if wrong:
        raise ValueError(f'it is damaged: its {", ".join(wrong)} has the wrong type')
