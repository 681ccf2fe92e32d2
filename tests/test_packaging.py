# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a wheel and an editable install hold, and that the zoo's index is true."""
import re
import subprocess
import sys
import zipfile

import pytest
import yaml
from libraries import ROOT
from mmengine.config import Config


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The names in a wheel built from the tracked and untracked files of this checkout."""
    source = tmp_path_factory.mktemp('source')
    files = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.split()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp('wheel')
    done = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps', '-w', str(out),
                           str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, = out.glob('partialnet_mm-*.whl')
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith('METADATA'))).decode()
    return names, metadata


def test_wheel_ships_configs_and_tools_under_mim(wheel):
    names, _ = wheel
    for folder in ('configs', 'tools'):
        shipped = {n[len('partialnet_mm/.mim/'):] for n in names if n.startswith(f'partialnet_mm/.mim/{folder}/')}
        here = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob('*')
                if p.is_file() and '__pycache__' not in p.parts}
        assert shipped == here
    assert 'partialnet_mm/.mim/model-index.yml' in names
    assert 'partialnet_mm/models/partialnet.py' in names
    assert not [n for n in names if n.startswith('tests')]


def test_wheel_names_its_extras(wheel):
    _, metadata = wheel
    assert set(re.findall(r'Provides-Extra: (\w+)', metadata)) == {'onedl', 'openmmlab', 'test', 'benchmark', 'export'}
    assert re.search(r'^Name: partialnet-mm$', metadata, re.M)
    assert re.search(r'^License.*Apache-2.0', metadata, re.M)


def test_editable_install_links_them():
    import partialnet_mm
    mim = ROOT / 'partialnet_mm' / '.mim'
    if not partialnet_mm.__file__.startswith(str(ROOT)) or not mim.exists():
        pytest.skip('partialnet_mm is not installed from this checkout')
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (mim / name).samefile(ROOT / name)


def test_zoo_names_every_config_once_and_no_result():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    collections, named = set(), []
    for path in index['Import']:
        content = yaml.safe_load((ROOT / path).read_text())
        collections |= {c['Name'] for c in content['Collections']}
        for model in content['Models']:
            assert model['In Collection'] in collections
            assert (ROOT / model['Config']).is_file()
            assert model['Metadata']['Epochs'] == Config.fromfile(ROOT / model['Config']).train_cfg.max_epochs
            # there are no weights, so there can be no results
            assert 'Weights' not in model and 'Results' not in model
            named.append(model['Config'])
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'configs').glob('*/*.py') if p.parent.name != '_base_'}
    assert sorted(named) == sorted(here)
