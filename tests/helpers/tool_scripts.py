# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Runs commands of tools/ in the test's own process, which saves seconds of imports each time."""
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.libraries import ROOT


def load_tool(script: str) -> ModuleType:
    """A script of this project as a module, e.g. 'tools/test.py'."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_main(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object, **replaced: object) -> object:
    """Runs a script's ``main()`` and returns its exit status; ``replaced`` are names in it to set before."""
    monkeypatch.setattr(sys, 'argv', [script, *map(str, arguments)])
    tool = load_tool(script)
    for name, value in replaced.items():
        assert hasattr(tool, name)
        setattr(tool, name, value)
    try:
        return tool.main() or 0
    except SystemExit as leaving:
        return leaving.code or 0
