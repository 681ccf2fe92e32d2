# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Which checkpoint of a folder to go on from."""
import os
import re
import zipfile
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from .reader import read_checkpoint

#: mmengine's name for the file that names the newest checkpoint.
POINTER = 'last_checkpoint'


class Choice(NamedTuple):
    """The checkpoint to go on from, or None, and those that are newer but cannot be used, each with its reason."""

    path: str | None
    skipped: list[tuple[str, str]]


def choose_checkpoint(folder: str, template: str, verify: Callable[[str], None]) -> Choice:
    """Finds the newest checkpoint of a folder that loads whole.

    Newest is what has gone through most epochs and iterations by its name, so
    that neither a copied folder with new dates nor a wrong pointer matters.

    Args:
        folder: Where checkpoints are.
        template: Their names, with ``{}`` for the number, as
            'epoch_{}.pth'.
        verify: Raises a ValueError for a path that cannot be used.

    Returns:
        Choice: The first that passes, newest first.
    """
    skipped = []
    for name in list_checkpoints(folder, template):
        path = os.path.join(folder, name)
        try:
            verify(path)
        except ValueError as error:
            skipped.append((path, str(error)))
            continue
        return Choice(path, skipped)
    return Choice(None, skipped)


def list_checkpoints(folder: str, template: str) -> list[str]:
    """Names of the checkpoints of a folder, newest first.

    Args:
        folder: Where to look; it need not exist.
        template: As for :func:`choose_checkpoint`. A number may be
            followed by ``_iter_`` and the iterations, see
            :func:`position_in_name`.

    Returns:
        list[str]: File names.
    """
    pattern = re.compile(re.escape(template).replace(r'\{\}', r'(\d+)(?:_iter_(\d+))?'))
    found = []
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        match = pattern.fullmatch(name)
        if match:
            found.append((int(match.group(1)), int(match.group(2) or 0), name))
    return [name for *_, name in sorted(found, reverse=True)]


def position_in_name(epochs: int, iterations: int) -> str:
    """What stands for ``{}`` in the name of a checkpoint from the middle of an epoch.

    Args:
        epochs: Epochs that are complete.
        iterations: Iterations since the start of the training.

    Returns:
        str: As '3_iter_1234', newer than '3', older than '4'.
    """
    return f'{epochs}_iter_{iterations}'


def verify_checkpoint(path: str, model: nn.Module) -> None:
    """Makes sure that a training can go on from a checkpoint exactly.

    Every byte is read and held against the file's checksums, which
    ``torch.load`` does not do; the content must be data only; weights of all
    parameters and buffers of the model must be there, in their shapes, and the
    state of the training as well.

    Args:
        path: A local file.
        model: What it will be loaded into.

    Raises:
        ValueError: With what is wrong.
    """
    if not os.path.isfile(path):
        raise ValueError('it does not exist')
    size = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises many types for damaged headers
        raise ValueError(f'it is truncated or damaged ({size} bytes; {error})') from error
    if damaged is not None:
        raise ValueError(f'it is damaged: the checksum of its part {damaged!r} is wrong')
    checkpoint = read_checkpoint(path)
    missing = [key for key in ('state_dict', 'meta', 'message_hub', 'optimizer') if key not in checkpoint]
    missing += [f'meta.{key}' for key in ('epoch', 'iter') if key not in checkpoint.get('meta', {})]
    if missing:
        raise ValueError(f'it has no {", ".join(missing)}: it holds weights, but no training to go on with')
    given = checkpoint['state_dict']
    for name, own in model.state_dict().items():
        if name not in given:
            raise ValueError(f'it belongs to another network: it has no {name}')
        if given[name].shape != own.shape:
            raise ValueError(f'it belongs to another network: {name} is {tuple(given[name].shape)}, '
                             f'the model of this config has {tuple(own.shape)}')
