# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The folders of the package import each other in one direction only."""
import ast
from pathlib import Path

import pytest

import partialnet_mm

PACKAGE = Path(partialnet_mm.__file__).parent
LOWEST = ('compat', 'config_types', 'datasets', 'preflight', 'version', 'zoo')
#: What each folder and module of the package may import, besides itself; most of the lowest import nothing.
ALLOWED = dict(
    dict.fromkeys(set(LOWEST) - {'preflight'}, ()), checkpoint=('version', 'config_types'),
    preflight=('config_types', ), models=('checkpoint', 'config_types'), doctor=('compat', 'models'),
    **dict.fromkeys(('analysis', 'converters', 'deploy', 'engine', 'swap_backbone', 'timm'),
                    ('models', 'checkpoint', *LOWEST)))


def rooms_imported_by(path):
    """First names below the package of everything that a file imports, wherever in the file it does."""
    folders = ('partialnet_mm', *path.relative_to(PACKAGE).parts[:-1])
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name.split('.') for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folders[:len(folders) + 1 - node.level] if node.level else ()
            modules += [[*base, *(node.module or '').split('.'), alias.name] for alias in node.names]
    modules = [[name for name in module if name] for module in modules]
    return {module[1] if len(module) > 1 else 'partialnet_mm' for module in modules if module[0] == 'partialnet_mm'}


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    if room != '__init__':  # the package itself imports what users need
        assert rooms_imported_by(path) <= {room, *ALLOWED[room]}


@pytest.mark.parametrize('line, room', [
    ('from . import engine', 'preflight'), ('from .. import engine', 'engine'), ('from ..zoo import X', 'zoo'),
    ('from partialnet_mm import models', 'models'), ('import partialnet_mm.zoo as zoo', 'zoo'),
    ('import partialnet_mm', 'partialnet_mm'), ('import torch', None)])
def test_every_form_of_import_is_read(tmp_path, monkeypatch, line, room):
    monkeypatch.setattr(f'{__name__}.PACKAGE', tmp_path)
    (tmp_path / 'preflight').mkdir()
    path = tmp_path / 'preflight/module.py'
    path.write_text(f'def function():\n    {line}\n')
    assert rooms_imported_by(path) == ({room} if room else set())
