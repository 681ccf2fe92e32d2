# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The contents of a wheel, and what works where it is installed."""
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from partialnet_mm.compat import installed_version
from tests.helpers.libraries import ROOT
from tests.helpers.wheel import build_wheel

METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp('built'))


@pytest.fixture(scope='module')
def contents(wheel):
    """The names in the wheel, and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith('METADATA'))).decode()
    return names, metadata


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Python of a new environment with the wheel and the packages of this one, without its editable installs."""
    home = tmp_path_factory.mktemp('environment') / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(home)], check=True)
    python = home / 'bin' / 'python'
    site = Path(subprocess.run([str(python), '-c', "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
                               capture_output=True, text=True, check=True).stdout.strip())
    # Editable installs are .pth files, which Python reads in the first folder only.
    (site / 'below.pth').write_text(sysconfig.get_paths()['purelib'] + '\n')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', str(site),
                    str(wheel)], check=True, capture_output=True)
    return python


def run_outside(command, folder, **variables):
    """Runs a command in a folder outside this checkout."""
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    env.update(OMP_NUM_THREADS='1', **variables)
    return subprocess.run([str(word) for word in command], cwd=folder, env=env, capture_output=True, text=True)


def test_wheel_ships_configs_and_tools_under_mim(contents):
    names, _ = contents
    for folder in ('configs', 'tools'):
        shipped = {n[len('partialnet_mm/.mim/'):] for n in names if n.startswith(f'partialnet_mm/.mim/{folder}/')}
        here = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob('*')
                if p.is_file() and '__pycache__' not in p.parts}
        assert shipped == here
    assert 'partialnet_mm/.mim/model-index.yml' in names
    assert 'partialnet_mm/models/partialnet.py' in names
    assert not [n for n in names if n.startswith('tests')]


def test_wheel_names_its_extras(contents):
    _, metadata = contents
    assert set(re.findall(r'Provides-Extra: (\w+)', metadata)) == {
        'onedl', 'openmmlab', 'runtime', 'test', 'benchmark', 'export'}
    # Each set brings a torch of its own, and the predictor none.
    assert re.findall(r'^Requires-Dist: ([\w-]+)', re.sub(r'.*extra ==.*', '', metadata), re.M) == ['numpy']
    assert set(re.findall(r'^Requires-Dist: ([\w-]+).*extra == .runtime', metadata, re.M)) == {
        'numpy', 'onnxruntime', 'Pillow'}
    assert re.search(r'^Name: partialnet-mm$', metadata, re.M)
    assert re.search(r'^License.*Apache-2.0', metadata, re.M)


def test_editable_install_links_them():
    import partialnet_mm
    mim = ROOT / 'partialnet_mm' / '.mim'
    if not partialnet_mm.__file__.startswith(str(ROOT)) or not mim.exists():
        pytest.skip('partialnet_mm is not installed from this checkout')
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (mim / name).samefile(ROOT / name)


FIND_BY_NAME = """
import json, sys, warnings
import partialnet_mm
import mmpretrain
from mmengine.config import Config
try:
    mmpretrain.inference_model('partialnet-t0_in1k', 'image.jpg')
except FileNotFoundError as error:
    refusal = str(error)
print(json.dumps(dict(
    package=partialnet_mm.__file__,
    listed=mmpretrain.list_models('partialnet*in1k'),
    config=mmpretrain.apis.model.ModelHub.get('partialnet-s_in1k').filepath,
    arch=mmpretrain.get_model('partialnet-t0_in1k').backbone.arch,
    refusal=refusal,
    base=Config.fromfile('mine.py').model.backbone,
    detector=partialnet_mm.config_path('mask-rcnn_partialnet-s_fpn_1x_coco'))))
"""


def test_installed_wheel_finds_everything_by_name_outside_the_checkout(installed, tmp_path):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'mine.py').write_text(
        "_base_ = __import__('partialnet_mm').config_path('mask_rcnn/partialnet_s_1x.py')\n"
        'model = dict(backbone=dict(frozen_stages=2))\n')
    done = run_outside([installed, '-c', FIND_BY_NAME], tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    package = installed.parents[1]
    assert Path(found['package']).is_relative_to(package)
    assert Path(found['config']).is_relative_to(package)
    assert Path(found['detector']).is_relative_to(package)
    assert {f'partialnet-{arch}_in1k' for arch in ('t0', 't1', 't2', 's', 'm', 'l')} <= set(found['listed'])
    assert found['arch'] == 't0'
    assert str(package) in found['refusal'] and 'this project has no weights of' in found['refusal']
    assert (found['base']['type'], found['base']['arch'], found['base']['frozen_stages']) == ('PartialNet', 's', 2)


# mim and what it imports, without the packages that only some of its commands need and that have old pins.
MIM = ('openmim==0.3.9', 'model-index', 'click', 'colorama', 'rich', 'tabulate', 'requests', 'urllib3', 'idna',
       'certifi', 'charset-normalizer', 'pandas==2.2.3', 'python-dateutil', 'pytz', 'six', 'tzdata')


@pytest.fixture(scope='module')
def mim(installed):
    """The mim command, installed from the package index beside the wheel; skipped where there is no index."""
    site = subprocess.run([str(installed), '-c', "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
                          capture_output=True, text=True, check=True).stdout.strip()
    wanted = [*MIM, 'pip', f'setuptools=={installed_version("setuptools")}']
    done = subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', site, *wanted],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'openmim cannot be installed here: {done.stderr.strip().splitlines()[-1]}')
    return [installed, '-m', 'mim']


@pytest.mark.slow
@pytest.mark.parametrize('package', ['partialnet-mm', 'partialnet_mm'])
def test_mim_searches_the_installed_package(mim, tmp_path, package):
    done = run_outside([*mim, 'search', package, '--json', 'found.json'], tmp_path)
    assert done.returncode == 0, done.stderr
    fields = json.loads((tmp_path / 'found.json').read_text())
    named = {m['Name']: m['Config'] for path in METAFILES for m in yaml.safe_load(path.read_text())['Models']}
    assert fields['config'] == named
    assert fields['parameters']['partialnet-l_in1k'] == 104466304
    assert fields['weight']['partialnet-l_in1k'] == 'unpublished://partialnet-l_in1k'
    one = run_outside([*mim, 'search', package, '--config', 'partialnet-t0_in1k'], tmp_path)
    assert one.returncode == 0 and 'configs/pretrain/partialnet_t0_in1k.py' in one.stdout


@pytest.mark.slow
def test_mim_trains_from_the_installed_package_and_tests(mim, tmp_path):
    """A config of the package by its tools, also by file name; then one that inherits from it, by mmdet's tools."""
    pytest.importorskip('mmdet')
    code = "print(__import__('partialnet_mm').config_path('mask_rcnn/partialnet_t0_shapes'))"
    where = run_outside([mim[0], '-c', code], tmp_path)
    config = Path(where.stdout.strip())
    make_shapes = config.parents[2] / 'tools' / 'dataset_tools' / 'make_shapes.py'
    drawn = run_outside([mim[0], make_shapes, '--train', '4', '--val', '2'], tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    options = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=2']
    trained = run_outside([*mim, 'train', 'partialnet_mm', config, '--gpus', '0', '--work-dir', 'shipped', *options],
                          tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / 'shipped' / 'epoch_1.pth').is_file()
    tested = run_outside([*mim, 'test', 'partialnet_mm', config, '--checkpoint', 'shipped/epoch_1.pth', '--gpus', '0'],
                         tmp_path)
    assert tested.returncode == 0, tested.stderr
    found = run_outside([*mim, 'train', 'partialnet_mm', 'partialnet_t0_custom.py', '--gpus', '0', '--cfg-options',
                         'data_root=nowhere'], tmp_path)
    assert "data_root 'nowhere' is not a folder" in found.stderr
    (tmp_path / 'mine.py').write_text(
        "_base_ = __import__('partialnet_mm').config_path('mask_rcnn/partialnet_t0_shapes.py')\n")
    mmdet = next(d for d in ('onedl-mmdetection', 'mmdet') if installed_version(d))
    on_top = run_outside([*mim, 'train', mmdet, 'mine.py', '--gpus', '0', '--work-dir', 'on_top', *options], tmp_path)
    assert on_top.returncode == 0, on_top.stderr
    assert (tmp_path / 'on_top' / 'epoch_1.pth').is_file()


def test_imports_without_the_three_libraries():
    """Neither importing nor building the backbone imports mmdet, mmseg or mmpretrain."""
    code = ("import sys\n"
            "for name in ('mmdet', 'mmseg', 'mmpretrain', 'mmcv.ops'):\n"
            "    sys.modules[name] = None\n"
            "import torch, partialnet_mm\n"
            "out = partialnet_mm.PartialNet('t0', out_indices=(0, 3)).eval()(torch.zeros(1, 3, 64, 64))\n"
            "print([tuple(o.shape) for o in out])\n")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[(1, 32, 16, 16), (1, 256, 2, 2)]'
