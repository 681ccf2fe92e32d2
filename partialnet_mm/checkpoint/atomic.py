# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Files that are there whole or not at all."""
import errno
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

#: Ending of a file that is being written. One that a crash leaves behind is no checkpoint.
UNFINISHED = '.saving'


def write_atomically(content: bytes, path: str | Path) -> None:
    """Writes a file so that a crash at any moment leaves the old content or the new one.

    The content goes to a temporary file beside it and is flushed to the disk. A
    rename gives it its name, and is flushed too. A file system that cannot
    flush folders causes a warning.

    Args:
        content: All of the file.
        path: The file; its folder is created if it is missing.

    Raises:
        OSError: If it cannot be written, with the path and the size; the
            temporary file is removed and the former content is kept.
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
        raise OSError(error.errno, f'{path!r} ({len(content)} bytes) could not be written: {error.strerror}. The '
                      'former content is untouched') from error
    _flush_folder(folder)


def _flush_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        # Python shows the same warning once.
        warnings.warn(f'the file system of {folder!r} cannot flush folders ({error.strerror}): the file written last '
                      'may be lost if the machine loses power', RuntimeWarning, stacklevel=3)
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

    ``backend_args=dict(backend='atomic')`` selects it wherever mmengine takes
    ``backend_args``.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file."""
        write_atomically(obj, filepath)
