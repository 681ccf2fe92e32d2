# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')

PROGRAM = '''
import torch
from partialnet_mm.analysis.peak_memory import peak_memory

def work():
    held = torch.ones(16 * 2**20)      # 64 MiB at once
    del held
    torch.ones({second} * 2**18).sum()   # then so many MiB

torch.ones(64 * 2**20).sum()           # 256 MiB before, which must not count
print(peak_memory(work) / 2**20)
'''


@pytest.mark.parametrize('second, expected', [(16, 64), (128, 128)])
def test_the_most_at_any_time(second, expected):
    out = subprocess.run([sys.executable, '-c', PROGRAM.format(second=second)], capture_output=True, text=True,
                         check=True, env=dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', PATH=''))
    assert float(out.stdout) == pytest.approx(expected, abs=10)
