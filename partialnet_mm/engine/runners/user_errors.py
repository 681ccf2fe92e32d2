# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""How every command reports what its user can correct: one sentence, and status 2."""
import argparse
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

PACKAGE = Path(__file__).resolve().parents[2]
#: Exit status for what the user can correct.
WRONG_USAGE = 2
#: Seconds in which the first process of a machine reports a mistake that all its processes find.
PATIENCE = 10


class ToolParser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line, and knows ``--debug``."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument('--debug', action='store_true', default=argparse.SUPPRESS,
                          help='show the traceback of an error')

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        self.exit(WRONG_USAGE, f'{self.prog}: {message} ({self.prog} --help shows the usage)\n')


def command(main: Callable[[], object]) -> Callable[[], object]:
    """Makes the ``main`` of a command end with one sentence and status 2 where its user can correct what is wrong.

    Such are the ValueErrors and OSErrors that this package and its tools raise themselves. All other errors keep their
    traceback, as these do with ``--debug``. The first process of a machine prints; one that has found what no other has
    prints later.
    """
    @functools.wraps(main)
    def run() -> object:
        try:
            return main()
        except (ValueError, OSError) as error:
            if '--debug' in sys.argv or not is_ours(error, main.__code__.co_filename):
                raise
            if not is_first_process():
                time.sleep(PATIENCE)  # the launcher ends this process once the first one has left
            hint = ' (--debug shows the traceback)' if error.__cause__ else ''
            sys.stderr.write(f'{Path(sys.argv[0]).name}: {str(error).rstrip()}{hint}\n')
            sys.exit(WRONG_USAGE)
    return run


def is_first_process() -> bool:
    """Whether this process is the first one of a distributed job on its machine, or the only one."""
    return os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID', '0')) == '0'


def is_ours(error: Exception, script: str | None = None) -> bool:
    """Whether a file of this package, or a script, raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    return file == script or PACKAGE in Path(file).resolve().parents
