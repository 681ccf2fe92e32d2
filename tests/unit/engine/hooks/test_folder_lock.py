# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""One training per folder; the lock of one that has ended is taken over."""
import fcntl
import json
import multiprocessing
import os
import socket
import threading

import pytest

from partialnet_mm.engine.hooks import _folder_lock
from partialnet_mm.engine.hooks._folder_lock import LOCK, FolderLock

FORK = multiprocessing.get_context('fork')


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(_folder_lock, 'BEAT', 0.05)


def in_another_process(folder):
    """What a second training there gets: the error's text, or '' if it got the lock, and its reports."""
    def run():
        reports = []
        try:
            FolderLock(str(folder), reports.append)
        except RuntimeError as error:
            far.send((str(error), reports))
        else:
            far.send(('', reports))

    near, far = FORK.Pipe()
    process = FORK.Process(target=run)
    process.start()
    answer = near.recv()
    process.join()
    return answer


def test_a_second_is_refused_until_the_first_releases(tmp_path):
    lock = FolderLock(str(tmp_path), print)
    holder = json.loads((tmp_path / LOCK).read_text())
    assert (holder['host'], holder['process']) == (socket.gethostname(), os.getpid())
    error, _ = in_another_process(tmp_path)
    assert error.startswith(f'another training uses {str(tmp_path)!r}: process {os.getpid()} on {holder["host"]}, '
                            f'since {holder["since"]}')
    assert in_another_process(tmp_path)[0] == error, 'reading the file does not release it'
    FolderLock(str(tmp_path), print)  # of a training that this process has given up
    lock.release()
    lock.release()
    assert not (tmp_path / LOCK).exists()
    assert in_another_process(tmp_path) == ('', [])


def test_a_lock_of_a_dead_process_is_taken_over_at_once(tmp_path):
    assert in_another_process(tmp_path) == ('', [])  # it ends without releasing
    assert (tmp_path / LOCK).exists()
    reports = []
    FolderLock(str(tmp_path), reports.append).release()
    assert len(reports) == 1 and 'is taken over from process' in reports[0]


@pytest.mark.parametrize('content', ['{"host": "elsewhere", "process": 7, "since": "then"}', 'garbage', '[]'])
@pytest.mark.parametrize('alive', [False, True])
def test_a_lock_from_another_machine_counts_while_it_is_touched(tmp_path, content, alive):
    """As on a file system that does not share locks between machines."""
    path = tmp_path / LOCK
    path.write_text(content)
    ended = threading.Event()

    def touch():
        while not ended.wait(0.02):
            os.utime(path)

    if alive:
        threading.Thread(target=touch, daemon=True).start()
    error, reports = in_another_process(tmp_path)
    ended.set()
    assert 'waiting 0.2 s for a sign of life' in reports[0]
    assert bool(error) == alive
    if not alive:
        assert 'is taken over' in reports[1]


def test_without_locks_the_sign_of_life_decides(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', no_locks)
    lock = FolderLock(str(tmp_path), print)
    assert 'another training uses' in in_another_process(tmp_path)[0]
    lock.release()
    assert in_another_process(tmp_path) == ('', [])
