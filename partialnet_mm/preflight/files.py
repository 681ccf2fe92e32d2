# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The files that a check reads, and the record of a check that found no error."""
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .findings import Finding

#: Number of records that are kept, the newest.
KEPT = 64


class Files:
    """Answers whether files exist, and remembers what the outcome of a check depends on.

    The outcome depends on the size and the time of each file that was read, and on the time of each folder whose names
    were read. Both are taken before reading, so a change during the check is noticed by the next one.
    """

    def __init__(self) -> None:
        self.stats: dict[str, list[int] | None] = {}
        self._names: dict[str, set[str]] = {}

    def reads(self, *paths: str) -> None:
        """Remembers the present state of files or folders."""
        for path in paths:
            self.stats.setdefault(os.path.abspath(path), _stat(path))

    def exists(self, path: str) -> bool:
        """Whether a file exists, by one listing of each folder: network drives answer single questions slowly."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            self.reads(folder)
            self._names[folder] = set()
            with contextlib.suppress(OSError), os.scandir(folder or '.') as entries:
                self._names[folder] = {entry.name for entry in entries
                                       if not entry.is_symlink() or os.path.exists(entry.path)}
        # Some file systems find a name in another case or normalization.
        return name in self._names[folder] or os.path.isfile(path)


def _stat(path: str) -> list[int] | None:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return [state.st_size, state.st_mtime_ns]


def records_folder() -> Path:
    """``$PARTIALNET_MM_CACHE``, or ``partialnet_mm/preflight`` in the user's cache folder."""
    given = os.environ.get('PARTIALNET_MM_CACHE')
    if given:
        return Path(given)
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'partialnet_mm' / 'preflight'


def record_path(settings: Iterable[object]) -> Path:
    """The file of the record of a check with these settings."""
    digest = hashlib.sha256('\n'.join(map(repr, settings)).encode('utf-8', 'surrogateescape')).hexdigest()
    return records_folder() / f'{digest[:40]}.json'


def read_record(path: Path) -> list[Finding] | None:
    """The findings of an earlier check, or None if there is none, or a file that it depends on has changed."""
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        if all(_stat(file) == state for file, state in record['files'].items()):
            return [Finding(*finding) for finding in record['findings']]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # no record, one of another version, or a damaged one: the data is checked again
    return None


def write_record(path: Path, files: Files, findings: Sequence[Finding]) -> None:
    """Writes a record at once, so that other processes see it whole or not at all; without the right to, it is left.

    A check of files that have no size and time, such as addresses, leaves no record.
    """
    if None in files.stats.values():
        return
    with contextlib.suppress(OSError, UnicodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with open(handle, 'w', encoding='utf-8') as file:
                json.dump(dict(files=files.stats, findings=findings), file)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
        records = sorted(path.parent.glob('*.json'), key=lambda record: record.stat().st_mtime)
        for old in records[:-KEPT]:
            old.unlink(missing_ok=True)
