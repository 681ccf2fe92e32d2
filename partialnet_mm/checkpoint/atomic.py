# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Files that are there whole or not at all."""
import os
from collections.abc import Iterable
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

#: Ending of a file that is being written. One that a crash leaves behind is no checkpoint.
UNFINISHED = '.saving'


def write_atomically(content: bytes, path: str | Path) -> None:
    """Writes a file so that a crash at any moment leaves the old content or the new one.

    The content goes to a file beside it, is flushed to the disk, and takes the
    name by a rename, which is flushed too.

    Args:
        content: All of the file.
        path: Where; its folder is made if needed.

    Raises:
        OSError: If it cannot be written, with what is left named; the
            unfinished file is removed.
    """
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    unfinished = path + UNFINISHED
    os.makedirs(folder, exist_ok=True)
    try:
        with open(unfinished, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if os.path.exists(unfinished):
            os.remove(unfinished)
        raise OSError(error.errno, f'{path!r} ({len(content)} bytes) could not be written: {error.strerror}. What was '
                      'there before is untouched') from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_overwrite(path: str | Path, inputs: Iterable[str | Path] = (), force: bool = False) -> None:
    """Raises if a tool must not write a file: it exists, or it is one of the tool's own inputs.

    A link counts as what it points to, and a link to nothing as a file that
    exists.

    Args:
        path: The file to write.
        inputs: Files that the tool reads; they are never written over, whatever
            ``force`` is. A folder in ``inputs`` protects all that lies in it.
        force: Whether the user allows writing over an existing file
            (``--force``).

    Raises:
        ValueError: With the file and the reason.
    """
    target = os.path.realpath(path)
    for source in map(os.fspath, inputs):
        real = os.path.realpath(source)
        inside = os.path.isdir(real) and os.path.commonpath((real, target)) == real
        if real == target or inside or (os.path.exists(real) and os.path.exists(target)
                                        and os.path.samefile(real, target)):
            raise ValueError(f'{os.fspath(path)!r} is not written: it would overwrite the input {source!r}. '
                             'Name another output')
    if os.path.isdir(target):
        raise ValueError(f'{os.fspath(path)!r} is not written: it is a folder, and a file name is needed')
    if os.path.lexists(path) and not force:
        raise ValueError(f'{os.fspath(path)!r} is not written: it exists. --force overwrites it')


@register_backend('atomic')
class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, written by :func:`write_atomically`.

    ``backend_args=dict(backend='atomic')`` chooses it wherever mmengine takes
    them.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file.

        Args:
            obj: All of the file.
            filepath: Where.
        """
        write_atomically(obj, filepath)
