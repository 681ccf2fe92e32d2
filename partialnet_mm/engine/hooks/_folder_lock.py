# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""One training per folder."""
import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

from ...checkpoint.errors import ResumeError

#: Name of the lock in a folder.
LOCK = 'training.lock'
#: Seconds between two signs of life of a holder.
BEAT = 5.


class FolderLock:
    """Keeps a second training out of a folder.

    The system releases the lock when the process ends, however it ends. Some
    file systems do not share locks between machines, or have none. There the
    holder's sign of life decides: it touches the file every five seconds. A
    lock from another machine that stays untouched for four such intervals is
    stale.

    Args:
        folder: The folder to lock; it must exist.
        report: Called with lines for the log.

    Raises:
        RuntimeError: If another training holds the lock, with its machine,
            process and start.
    """

    # Together with the number of the process: containers share names and numbers.
    _token = uuid.uuid4().hex

    def __init__(self, folder: str, report: Callable[[str], None]) -> None:
        self.path = os.path.join(folder, LOCK)
        self._file = self._open()
        try:
            self._take(report)
        except BaseException:
            self._close()
            raise
        # A process that is forked, such as the worker of a data loader, must not hold the lock on.
        os.register_at_fork(after_in_child=self._close)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Lets other trainings in; a second call does nothing."""
        if not self._released.is_set():
            self._released.set()
            self._thread.join()
            if self._is_in_place():
                os.unlink(self.path)
            self._close()

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)

    def _is_in_place(self) -> bool:
        return os.path.exists(self.path) and os.path.samestat(os.fstat(self._file), os.stat(self.path))

    def _take(self, report: Callable[[str], None]) -> None:
        shared = self._lock()
        while not self._is_in_place():  # the former holder has removed the file since it was opened here
            os.close(self._file)
            self._file = self._open()
            shared = self._lock()
        holder = self._read()
        if holder and not (shared and holder.get('host') == socket.gethostname()):
            report(f'{self.path!r} is of {_describe(holder)}: waiting {4 * BEAT:g} s for a sign of life')
            if self._is_touched():
                raise self._refusal(holder)
        if holder and holder.get('token') != self._own_token():
            report(f'{self.path!r} is taken over from {_describe(holder)}, which has ended')
        content = dict(host=socket.gethostname(), process=os.getpid(), since=time.strftime('%Y-%m-%d %H:%M:%S'),
                       token=self._own_token())
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(content).encode(), 0)

    def _lock(self) -> bool:
        """Returns whether the file system has locks; raises if another process holds this one."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return False
            holder = self._read()
            if holder.get('token') != self._own_token():  # otherwise it is of a training that this process gave up
                raise self._refusal(holder) from None
        return True

    def _own_token(self) -> str:
        return f'{self._token}-{os.getpid()}'

    def _read(self) -> dict:
        content = os.pread(self._file, 1000, 0)
        try:
            holder = json.loads(content) if content else {}
        except ValueError:
            holder = None
        return holder if isinstance(holder, dict) else dict(host='an unknown machine')

    def _is_touched(self) -> bool:
        before = self._time()
        time.sleep(4 * BEAT)
        return self._time() != before

    def _time(self) -> int:
        # A network file system shows the time of now to those who open the file.
        file = os.open(self.path, os.O_RDONLY)
        try:
            return os.fstat(file).st_mtime_ns
        finally:
            os.close(file)

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):  # the folder may be away for a while
                os.utime(self.path)

    def _refusal(self, holder: dict) -> ResumeError:
        return ResumeError(f'another training uses {os.path.dirname(self.path)!r}: {_describe(holder)}. Wait for its '
                            'end, or use another work directory')


def _describe(holder: dict) -> str:
    return f'process {holder.get("process")} on {holder.get("host")}, since {holder.get("since")}'
