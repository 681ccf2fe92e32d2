# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Runs a script in a process of torchrun and keeps the status it exits with: report_status.py SCRIPT [arguments].

torchrun exits with 1 whatever its processes exit with. Status 2 (wrong usage) and 75 (saved, to be resumed) go to the
file that PARTIALNET_STATUS_FILE names.
"""
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    file = Path(os.environ['PARTIALNET_STATUS_FILE'])
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')) > 0 and file.exists():
        file.write_text('')  # of the processes before the restart
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as leaving:
        if leaving.code in (2, 75) and file.exists():
            file.write_text(str(leaving.code))
        raise


if __name__ == '__main__':
    main()
