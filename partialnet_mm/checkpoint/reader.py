# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Reading checkpoints without running code that they carry."""
import io
import json
import os
import stat
import struct
import sys
import zipfile
from collections.abc import Callable

import torch
from safetensors import safe_open

from ._data_pickle import Budget, DataPickle, Refusal, check_tree
from .errors import CheckpointError, MissingCheckpointError

#: Largest directory of an archive, and largest header of a safetensors file, in bytes: 40,000 tensors.
MAX_DIRECTORY = 4 << 20
#: What the data of a file may take in memory beside its tensors, in bytes, and as a fraction of the file.
MAX_DATA, DATA_FRACTION = 160 << 20, 0.1
#: What the content may grow to if each tensor is copied wherever it is named, as a multiple of the file.
MAX_GROWTH = 3
_CHUNK = 1 << 20


def read_checkpoint(path: str | os.PathLike, trust: bool = False) -> dict:
    """Reads a checkpoint file as data: tensors, numbers, text, containers of them, and mmengine's log buffers.

    Two formats are read: safetensors, and the zip archives of ``torch.save``. A file that asks to call a function or to
    build an object is refused before anything of it runs. Functions and classes that it only names come as
    :class:`Reference`, which is a text; numpy's scalars come as Python's numbers. Beside its tensors, a file gets at
    most 256 MiB of memory.

    Args:
        path: A local file.
        trust: Whether a file that is refused is loaded by ``torch.load`` instead, with any code that it carries.
            Defaults to False.

    Returns:
        What was saved, tensors on the CPU. Of a safetensors file, the tensors under 'state_dict' and its metadata under
        'meta'.

    Raises:
        MissingCheckpointError: If there is no such file.
        CheckpointError: If it is damaged, no checkpoint, or more than data, with the reason.
    """
    path = os.fspath(path)
    size: int | None = None
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = _read(file, path, size, trust)
        if not isinstance(content, dict):
            raise Refusal(f'it is a {type(content).__name__}; a dict is needed')
        _check_meta(content)
    except FileNotFoundError as error:
        raise MissingCheckpointError(f'checkpoint {path!r} does not exist') from error
    except Exception as error:  # damaged files raise many types
        reason = str(error) if isinstance(error, Refusal) else (
            f'it is truncated or damaged ({type(error).__name__}: {" ".join(str(error).split())[:200]})')
        # Names in a file must not control a terminal.
        reason = ''.join(letter if letter.isprintable() else '?' for letter in reason)
        raise CheckpointError(f'checkpoint {path!r} ({size if size is not None else "?"} bytes) cannot be read: '
                              f'{reason}') from error
    return content


def _check_meta(content: dict) -> None:
    """What all tools take out of a checkpoint beside its tensors has the type that they expect."""
    meta = content.get('meta', {}) if 'state_dict' in content else {}
    data = meta.get('dataset_meta', {}) if isinstance(meta, dict) else {}
    for name, value in (('meta', meta), ('meta.dataset_meta', data)):
        if not isinstance(value, dict):
            raise Refusal(f'its {name} has the wrong type, {type(value).__name__}; a dict is needed')


class _BoundedFile(io.FileIO):
    """A file of which nobody reads much at once, whatever sizes it claims to have inside."""

    def read(self, size: int = -1) -> bytes:
        data = super().read(min(size, MAX_DIRECTORY + 1) if size >= 0 else MAX_DIRECTORY + 1)
        if len(data) > MAX_DIRECTORY:
            raise Refusal(f'the directory of its archive is larger than {MAX_DIRECTORY >> 20} MiB')
        return data


def _open(path: str) -> _BoundedFile:
    def regular(status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise Refusal('it is a folder' if stat.S_ISDIR(status.st_mode) else 'it is a pipe, a device or a socket')

    # To open a device may do something already; to open a pipe may wait for ever.
    regular(os.stat(path))
    file = _BoundedFile(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        regular(os.fstat(file.fileno()))
    except Refusal:
        file.close()
        raise
    return file


def _read(file: _BoundedFile, path: str, size: int, trust: bool) -> object:
    budget = Budget(int(MAX_DATA + DATA_FRACTION * size))
    begin = file.read(9)
    file.seek(0)
    if len(begin) == 9 and begin[8:] == b'{' and begin[:4] != b'PK\x03\x04':
        return _read_safetensors(path, struct.unpack('<Q', begin[:8])[0], size)
    try:
        content = _read_archive(file, size, budget)
        check_tree(content, MAX_GROWTH * size + MAX_DATA)
        return content
    except Exception:
        if not trust:
            raise
    file.seek(0)
    with os.fdopen(os.dup(file.fileno()), 'rb') as unbounded:
        return torch.load(unbounded, map_location='cpu', weights_only=False)


def _read_safetensors(path: str, header: int, size: int) -> dict:
    if not header <= min(MAX_DIRECTORY, size - 8):
        raise Refusal(f'its header is of {header} bytes')
    with safe_open(path, framework='pt') as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        metadata = file.metadata() or {}
    meta = json.loads(metadata['meta']) if 'meta' in metadata else dict(metadata)
    content = dict(state_dict=tensors, meta=meta)
    check_tree(content, MAX_GROWTH * size + MAX_DATA)
    return content


def _read_archive(file: _BoundedFile, size: int, budget: Budget) -> object:
    if file.read(4) != b'PK\x03\x04':
        raise Refusal('it is neither a safetensors file nor a zip archive of torch.save, or it is truncated or damaged')
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = {member.filename for member in members}
        pickles = [name for name in names if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise Refusal('its archive is not one of torch.save: it has no data.pkl, or several')
        folder = pickles[0][:-len('data.pkl')]
        if f'{folder}constants.pkl' in names or any(name.startswith(f'{folder}code/') for name in names):
            raise Refusal('it is a TorchScript archive, which is a program')
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise Refusal('members of its archive are compressed, as torch.save never writes them')
        if len(names) < len(members) or sum(member.file_size for member in members) > size:
            raise Refusal('its archive is damaged or forged: members overlap or have one name')
        if f'{folder}byteorder' in names:
            order = archive.read(f'{folder}byteorder')
            if order != sys.byteorder.encode():
                raise Refusal(f'its numbers are written in the order {order[:20]!r}, of another kind of processor')
        with archive.open(pickles[0]) as member, io.BufferedReader(member, 1 << 16) as stream:
            return DataPickle(stream, _storages(archive, folder), budget).load()


def _storages(archive: zipfile.ZipFile, folder: str) -> Callable[[str], torch.UntypedStorage]:
    """Reads a storage of an archive when it is asked for, each once, and compares its checksum."""
    loaded: dict[str, torch.UntypedStorage] = {}

    def load(key: str) -> torch.UntypedStorage:
        if key not in loaded:
            with archive.open(f'{folder}data/{key}') as member:
                size = archive.getinfo(member.name).file_size
                memory = torch.empty(size, dtype=torch.uint8)
                view = memoryview(memory.numpy())
                for start in range(0, size, _CHUNK):
                    count = member.readinto(view[start:start + _CHUNK])
                    if count != len(view[start:start + _CHUNK]):
                        raise Refusal('its archive ends early')
                member.read(1)  # at the end, the archive compares the checksum
            loaded[key] = memory.untyped_storage()
        return loaded[key]

    return load
