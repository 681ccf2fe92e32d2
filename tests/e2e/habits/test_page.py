# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The page's blocks are what these tests run."""
from pathlib import Path

from tests.helpers.libraries import ROOT


def test_every_block_of_the_page_is_tested(blocks):
    page = (ROOT / 'docs' / 'fine_tuning.md').read_text()
    assert page.count('```python') == 1 + len(blocks) > 10  # the first is the line that names a base
    tests = ''.join(path.read_text() for path in Path(__file__).parent.glob('test_*.py') if path != Path(__file__))
    assert [name for name in blocks if f"'{name}'" not in tests] == []
