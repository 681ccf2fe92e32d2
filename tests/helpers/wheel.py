# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A wheel of this checkout."""
import subprocess
import sys

from tests.helpers.libraries import ROOT


def build_wheel(folder):
    """Builds a wheel from the tracked and untracked files of this checkout, in a folder, and returns its path."""
    source, out = folder / 'source', folder / 'wheel'
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps', '-w', str(out),
                           str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, = out.glob('partialnet_mm-*.whl')
    return path
