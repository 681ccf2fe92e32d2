# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a wheel holds and does where it is installed, and that the zoo's metafiles are true."""
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from partialnet_mm.compat import installed_version
from partialnet_mm.zoo import CLASSIFIER_FOLDERS, UNPUBLISHED
from tests.helpers.libraries import ROOT

METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel built from the tracked and untracked files of this checkout."""
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
    return path


@pytest.fixture(scope='module')
def contents(wheel):
    """The names in the wheel, and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith('METADATA'))).decode()
    return names, metadata


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Python of a new environment with the wheel, and below it the packages of this one, not what they link to."""
    home = tmp_path_factory.mktemp('environment') / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(home)], check=True)
    python = home / 'bin' / 'python'
    site = Path(subprocess.run([str(python), '-c', "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
                               capture_output=True, text=True, check=True).stdout.strip())
    # Links of editable installs are in .pth files, which Python reads in the first folder only.
    (site / 'below.pth').write_text(sysconfig.get_paths()['purelib'] + '\n')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', str(site),
                    str(wheel)], check=True, capture_output=True)
    return python


def run_outside(command, folder, **variables):
    """Runs a command in a folder that has nothing of this checkout."""
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    env.update(OMP_NUM_THREADS='1', **variables)
    return subprocess.run([str(part) for part in command], cwd=folder, env=env, capture_output=True, text=True)


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
    assert str(package) in found['refusal'] and 'have been published' in found['refusal']
    assert (found['base']['type'], found['base']['arch'], found['base']['frozen_stages']) == ('PartialNet', 's', 2)


# mim and what it imports, without what only some of its commands need, which has old pins.
MIM = ('openmim==0.3.9', 'model-index', 'click', 'colorama', 'rich', 'tabulate', 'requests', 'urllib3', 'idna',
       'certifi', 'charset-normalizer', 'pandas==2.2.3', 'python-dateutil', 'pytz', 'six', 'tzdata')


@pytest.fixture(scope='module')
def mim(installed):
    """The mim command beside the installed wheel; from the package index, so skipped where there is none."""
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
    """A config of the package with its tools, found by file name too; then one on top of it with mmdet's tools."""
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


def test_index_lists_every_metafile():
    here = [path.relative_to(ROOT).as_posix() for path in METAFILES]
    assert yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import'] == here, 'model-index.yml, in this order'


def test_index_is_what_mim_and_mmpretrain_read():
    model_index = pytest.importorskip('modelindex.load_model_index')
    index = model_index.load(str(ROOT / 'model-index.yml'))
    # It looks for READMEs from the metafile's folder; OpenMMLab's metafiles name them from the root.
    assert [error for error in index.check(silent=True) if 'Path to README' not in error] == []
    assert [c.readme for c in index.collections if c.readme and not (ROOT / c.readme).is_file()] == []
    assert {model.in_collection for model in index.models} == {collection.name for collection in index.collections}
    names = [model.name for model in index.models]
    assert len(names) == len(set(names))
    # mim writes names in small letters before it compares
    assert [name for name in names if name != name.lower()] == []


@pytest.fixture
def no_random_weights(monkeypatch):
    """Networks are built to be counted: what draws their weights takes most of the time."""
    for name in ('kaiming_uniform_', 'kaiming_normal_', 'xavier_uniform_', 'uniform_', 'normal_', 'trunc_normal_'):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize('folder', sorted(p.name for p in (ROOT / 'configs').iterdir()
                                          if p.name != '_base_' and list(p.glob('*.py'))))
def test_metafile_tells_the_truth(folder, no_random_weights):
    path = ROOT / 'configs' / folder / 'metafile.yml'
    assert path.is_file(), f'configs/{folder} needs a metafile.yml, and model-index.yml a line for it'
    content = yaml.safe_load(path.read_text())
    collections = {c['Name']: c['Metadata'] for c in content['Collections']}
    configs = sorted(p.relative_to(ROOT).as_posix() for p in path.parent.glob('*.py'))
    assert sorted(m['Config'] for m in content['Models']) == configs, f'{path} names each config of its folder once'
    for model in content['Models']:
        name, metadata, cfg = model['Name'], model['Metadata'], Config.fromfile(ROOT / model['Config'])
        assert metadata.get('Training Data', collections[model['In Collection']].get('Training Data')), name
        # there are no weights, so there can be no results
        assert model.get('Weights', UNPUBLISHED + name) == UNPUBLISHED + name
        assert all(not result['Metrics'] for result in model.get('Results', []))
        if 'max_iters' in cfg.train_cfg:
            assert metadata['Iterations'] == cfg.train_cfg.max_iters, name
        else:  # how often the training goes through its images
            times = cfg.train_dataloader.dataset.get('times', 1)
            assert metadata['Epochs'] == cfg.train_cfg.max_epochs * times, name
        if 'Batch Size' in metadata:
            assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size, name
        if 'Parameters' in metadata and importlib.util.find_spec(cfg.default_scope):
            init_default_scope(cfg.default_scope)
            count = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
            assert metadata['Parameters'] == count, f'{name}; a model that the two sets build differently names none'
        if folder in CLASSIFIER_FOLDERS:  # mmpretrain is told of these
            assert cfg.default_scope == 'mmpretrain', name
            assert 'partialnet' in name, f'{name}: mmpretrain would refuse its own models if one had this name'
            # what makes its inferencers take the model, and refuse it without weights
            assert model['Results'][0]['Task'] == 'Image Classification', name
            assert 'Weights' in model, name
