# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The paper's figures: counted again, and in step with their page."""
import json
import sys

import pytest

from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import load_tool, run_main

TOOL = 'tools/analysis_tools/verify_paper.py'
PAGE = (ROOT / 'docs' / 'paper_figures.md').read_text()


@pytest.fixture
def verify(monkeypatch):
    """Runs the command; returns its exit status and the rows that it wrote."""
    pytest.importorskip('timm')

    def run(tmp_path, *arguments, **replaced):
        for helper in ('get_flops', 'paper_tables'):
            monkeypatch.setitem(sys.modules, helper, load_tool(f'tools/analysis_tools/{helper}.py'))
        out = tmp_path / 'rows'
        status = run_main(monkeypatch, TOOL, '--out', out, *arguments, **replaced)
        return status, out.read_text()

    return run


def page_rows(tables):
    return [line for line in PAGE.splitlines() if line.startswith('| ') and line.split(' | ')[0][2:] in tables]


def without_notes(rows):
    # numbers of the notes depend on how many tables are printed
    return [row.split(' (')[0] if row.endswith(') |') else row for row in rows]


def test_the_page_is_what_the_command_counts(verify, tmp_path):
    tables = ['3', '4', '9', '12']
    status, text = verify(tmp_path, '--format', 'markdown', '--tables', *tables)
    rows = [line for line in text.splitlines() if line.startswith(tuple(f'| {table} |' for table in tables))]
    assert not status and len(rows) == 14
    assert without_notes(rows) == without_notes(page_rows(tables))


@pytest.mark.slow
def test_the_whole_page(verify, tmp_path):
    status, text = verify(tmp_path, '--format', 'markdown')
    assert not status and text == PAGE


def test_a_figure_that_is_off_is_an_error(verify, tmp_path):
    tables = load_tool('tools/analysis_tools/paper_tables.py')
    right = next(figure for figure in tables.FIGURES if figure.table == '12' and figure.name == 'SRM')
    wrong = [right._replace(params='12.0'), right._replace(flops='1.05', reason='no count was recorded'), right,
             right._replace(params='11.0', reason='known', counted=(12.165, None)),
             right._replace(params='11.0', reason='known, and yet another count', counted=(11.5, None))]
    status, text = verify(tmp_path, '--format', 'json', '--tables', '12', FIGURES=wrong)
    rows = json.loads(text)
    assert status == 1
    assert [row['verdict'] for row in rows] == ['OFF', 'OFF', 'equal', 'explained', 'OFF']
    assert [row['reason'] for row in rows] == ['', '', '', 'known', '']
    assert {row['params'] for row in rows} == {12.166}


def test_times_stand_beside_the_papers(verify, tmp_path):
    tables = load_tool('tools/analysis_tools/paper_tables.py')
    figures = [figure for figure in tables.FIGURES if figure.name in ('PartialNet-T0', 'FasterNet-T2')]
    status, text = verify(tmp_path, '--format', 'json', '--tables', '1', '--latency', '--rounds', '3', FIGURES=figures)
    rows = json.loads(text)
    assert not status and [row['name'] for row in rows] == ['PartialNet-T0', 'FasterNet-T2']
    assert rows[0]['paper_latency_ratio'] == pytest.approx(12.2 / 43.7, abs=1e-3)
    assert rows[1]['paper_latency_ratio'] == 1
    assert all(row['latency_ms'] > 0 and row['latency_ratio'] > 0 for row in rows)
