# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The paper's figures: counted again, and in step with their page."""
import csv
import json

import pytest

from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import run_main

TOOL = 'tools/paper/verify_paper.py'
PAGE = (ROOT / 'docs' / 'paper_figures.md').read_text()


@pytest.fixture
def verify(monkeypatch, tmp_path):
    """Runs the command; returns its exit status and the rows that it wrote."""
    pytest.importorskip('timm')

    def run(*arguments):
        status = run_main(monkeypatch, TOOL, '--out', tmp_path / 'rows', *arguments)
        return status, (tmp_path / 'rows').read_text()

    return run


@pytest.fixture
def write_figures(tmp_path):
    """Writes rows of the paper's figures to a file of their own, each with changes."""

    def write(table, *rows):
        with (ROOT / 'tools' / 'paper' / 'figures.csv').open() as file:
            known = {row['name']: row for row in csv.DictReader(file) if row['table'] == table}
        path = tmp_path / 'figures.csv'
        with path.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(known[rows[0][0]]))
            writer.writeheader()
            writer.writerows({**known[name], **changes} for name, changes in rows)
        return path

    return write


def page_rows(tables):
    return [line for line in PAGE.splitlines() if line.startswith('| ') and line.split(' | ')[0][2:] in tables]


def without_notes(rows):
    # numbers of the notes depend on how many tables are printed
    return [row.split(' (')[0] if row.endswith(') |') else row for row in rows]


def test_the_page_is_what_the_command_counts(verify):
    tables = ['3', '4', '9', '12']
    status, text = verify('--format', 'markdown', '--tables', *tables)
    rows = [line for line in text.splitlines() if line.startswith(tuple(f'| {table} |' for table in tables))]
    assert not status and len(rows) == 14
    assert without_notes(rows) == without_notes(page_rows(tables))


@pytest.mark.slow
def test_the_whole_page(verify):
    status, text = verify('--format', 'markdown')
    assert not status and text == PAGE


def test_a_figure_that_is_off_is_an_error(verify, write_figures):
    figures = write_figures(
        '12', ('SRM', dict(params='12.0')), ('SRM', dict(flops='1.05')), ('SRM', {}),
        ('SRM', dict(params='11.0', reason='own', counted_params='12.165')),
        ('SRM', dict(params='11.0', reason='own', counted_params='11.5')))
    status, text = verify('--format', 'json', '--tables', '12', '--figures', figures)
    rows = json.loads(text)
    assert status == 1
    assert [row['verdict'] for row in rows] == ['OFF', 'OFF', 'equal', 'explained', 'OFF']
    assert [bool(row['reason']) for row in rows] == [False, False, False, True, False]
    assert {row['params'] for row in rows} == {12.166}


def test_times_stand_beside_the_papers(verify, write_figures):
    figures = write_figures('1', ('PartialNet-T0', {}), ('FasterNet-T2', {}))
    status, text = verify('--format', 'json', '--tables', '1', '--latency', '--rounds', '3', '--figures', figures)
    rows = json.loads(text)
    assert not status and [row['name'] for row in rows] == ['PartialNet-T0', 'FasterNet-T2']
    assert rows[0]['paper_latency_ratio'] == pytest.approx(12.2 / 43.7, abs=1e-3)
    assert rows[1]['paper_latency_ratio'] == 1
    assert all(row['latency_ms'] > 0 and row['latency_ratio'] > 0 for row in rows)


def test_unknown_tables(monkeypatch, capsys):
    assert run_main(monkeypatch, TOOL, '--tables', '7') == 2
    assert '--tables must be of 1, 2, 3, 4, 6, 9, 10, 12, 13, got 7' in capsys.readouterr().err
