# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints named by their content, as torch.hub and OpenMMLab's model zoos name theirs."""
import hashlib
import os
import re

from .errors import CheckpointError


def sha256_of(path: str) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for part in iter(lambda: file.read(1 << 20), b''):
            digest.update(part)
    return digest.hexdigest()


def check_hashed_name(path: str, name: str | None = None) -> None:
    """Compares a file with the hash in its name, ``<any>-<first 8 digits of its SHA-256>`` and ``.pth`` or
    ``.safetensors``.

    Other names pass; so do eight decimal digits, which are taken for a date,
    and what is no regular file, which the reader refuses.

    Args:
        path: A local file.
        name: Its name where that of ``path`` is a temporary
            one. Defaults to None.

    Raises:
        ValueError: If the file has another hash.
    """
    name = os.path.basename(name or path)
    match = re.search(r'-([0-9a-f]{8})\.(?:pth|safetensors)$', name)
    if match is None or match[1].isdigit() or not os.path.isfile(path):
        return
    found = sha256_of(path)[:8]
    if found != match[1]:
        raise CheckpointError(f'{name!r} is damaged, or not the file of its name: its SHA-256 begins with {found}, '
                              f'not with {match[1]}. Download it again, or, if this is no hash, give it another name')
