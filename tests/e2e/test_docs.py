# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The pages say what the code does: their tables are printed anew, and what they name exists."""
import re

import pytest

from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import run_main

PAGES = sorted(p.relative_to(ROOT).as_posix() for p in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')])


def test_table_of_variants_is_what_the_command_prints(monkeypatch, capsys):
    pytest.importorskip('mmpretrain')
    assert run_main(monkeypatch, 'tools/paper/variants.py') == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| `')]
    assert len(rows) == 8
    readme = (ROOT / 'README.md').read_text()
    assert [row for row in rows if row not in readme] == []


@pytest.mark.parametrize('page', PAGES)
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r'(?<![\w./-])((?:tools|configs|partialnet_mm|tests|docs|requirements)/[\w./]*\w)', text))
    named |= {link for link in re.findall(r'\]\(([^)#]+)\)', text) if '://' not in link}
    assert named
    assert re.findall(r'^[A-Z_]{4,}$', text, re.M) == []  # nothing is left to be filled in
    here = (ROOT / page).parent
    assert sorted(n for n in named if not (ROOT / n).exists() and not (here / n).exists()) == []


def test_no_page_or_message_installs_the_package_from_an_index():
    folders = ('partialnet_mm', 'tools', 'docs', 'requirements')
    files = [path for folder in folders for path in (ROOT / folder).rglob('*')
             if path.suffix in ('.py', '.md', '.sh', '.txt')]
    texts = {path: path.read_text() for path in [ROOT / 'README.md', ROOT / 'setup.py', *files]}
    assert len(texts) > 150
    # The project is on none; a name that is there one day need not be this project.
    named = [f'{path.relative_to(ROOT)}: {found}' for path, text in texts.items()
             for found in re.findall(r'''partialnet[-_]mm\[.*|pip install[^`\n]*[ '"]partialnet[-_]mm\b.*''', text)]
    assert named == []


def test_make_targets_that_the_readme_names_exist():
    targets = set(re.findall(r'^(\w[\w-]*):', (ROOT / 'Makefile').read_text(), re.M))
    named = set(re.findall(r'`(?:STACK=\w+ )?make ([\w-]+)`', (ROOT / 'README.md').read_text()))
    assert {'demo', 'lint'} <= named <= targets
