# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from partialnet_mm.analysis.machine import describe_machine


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('number, text', [(1, ', 1 thread, '), (2, ', 2 threads, ')])
def test_names_threads_and_version(number, text, threads):
    torch.set_num_threads(number)
    description = describe_machine('cpu')
    assert description.endswith(f'{text}torch {torch.__version__}')
    assert description.index(text) > 0


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_names_the_processor(monkeypatch):
    monkeypatch.setattr(Path, 'read_text', lambda path: 'processor\t: 0\nmodel name\t: Some CPU: 3000\n')
    assert describe_machine('cpu').startswith('Some CPU: 3000, ')
    monkeypatch.setattr(Path, 'is_file', lambda path: False)
    assert not describe_machine('cpu').startswith(('Some', ','))
