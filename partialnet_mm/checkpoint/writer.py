# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Writing checkpoints of weights."""
import io
import json
import os
import struct

import torch
from safetensors.torch import save

from ..version import __version__
from .atomic import write_atomically

#: Endings of the two formats, the default first.
ENDINGS = ('.safetensors', '.pth')


def write_checkpoint(content: dict, path: str | os.PathLike) -> None:
    """Writes weights and what describes them, in the format that the file's ending names.

    The file is there whole or not at all (:func:`write_atomically`).

    Args:
        content: 'state_dict', tensors by name, and 'meta' of plain data.
        path: File that ends in '.safetensors' or '.pth'. In safetensors, 'meta' becomes JSON: tuples become lists, and
            keys become texts. Beside it stand texts for other programs: 'arch', 'classes' (JSON) and 'source'.

    Raises:
        ValueError: If the file ends otherwise, or ``content`` has more keys or something else than plain data.
        OSError: If it cannot be written.
    """
    write_atomically(serialize_checkpoint(content, check_ending(path)), path)


def check_ending(path: str | os.PathLike) -> str:
    """The ending of a file to write, one of :data:`ENDINGS`; raises a ValueError for others."""
    ending = os.path.splitext(path)[1]
    if ending not in ENDINGS:
        raise ValueError(f'{os.fspath(path)!r} must end in {" or ".join(ENDINGS)}, which chooses the format')
    return ending


def serialize_checkpoint(content: dict, ending: str) -> bytes:
    """The bytes of a file of weights, the same for the same content: see :func:`write_checkpoint`."""
    if set(content) != {'state_dict', 'meta'}:
        raise ValueError(f"a checkpoint of weights has 'state_dict' and 'meta', got {sorted(content)}")
    if ending == '.pth':
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()
    meta = content['meta']
    try:
        metadata = dict(format='pt', source=f'partialnet_mm {__version__}', meta=json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f'meta cannot be written as JSON: {error}') from error
    arch = (meta.get('backbone') or {}).get('arch')
    if arch is not None:
        metadata['arch'] = arch if isinstance(arch, str) else json.dumps(arch)
    classes = (meta.get('dataset_meta') or {}).get('classes')
    if classes is not None:
        metadata['classes'] = json.dumps(classes)
    # Each tensor gets a memory of its own, in order, which the format asks for.
    tensors = {name: value.detach().clone(memory_format=torch.contiguous_format)
               for name, value in content['state_dict'].items()}
    return _with_sorted_metadata(save(tensors, metadata))


def _with_sorted_metadata(data: bytes) -> bytes:
    """The library writes metadata in an order that differs from process to process."""
    size, = struct.unpack('<Q', data[:8])
    header = json.loads(data[8:8 + size])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    return struct.pack('<Q', len(text)) + text + data[8 + size:]
