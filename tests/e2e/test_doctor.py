# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""``python -m partialnet_mm.doctor`` in environments that work and that do not."""
import os
import subprocess
import sys
from importlib import metadata, util

from partialnet_mm import compat


def run_doctor(*, path=''):
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    if path:
        environment['PYTHONPATH'] = path
    return subprocess.run([sys.executable, '-m', 'partialnet_mm.doctor'], capture_output=True, text=True,
                          env=environment, timeout=120)


def distribution(folder, name, version):
    """The metadata of an installed distribution."""
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


def other_set():
    """An owner of mmengine from the set that is not installed."""
    return 'mmengine' if compat.installed_version('onedl-mmengine') else 'onedl-mmengine'


def test_all_checks_pass_here():
    run = run_doctor()
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'PartialNet works here.' in run.stdout
    for scope in ('mmengine', 'mmdet', 'mmseg', 'mmpretrain'):
        if util.find_spec(scope):
            assert f"registry {scope}" in run.stdout
    if util.find_spec('mmdet'):
        assert 'NMS keeps [0, 2] (right: [0, 2]), RoIAlign gives 2.5' in run.stdout
    assert f'torch {metadata.version("torch")}' in run.stdout
    for name in ('python', 'CUDA available', 'GCC'):  # from mmengine's description of the environment
        assert any(line.split()[1:len(name.split()) + 1] == name.split() for line in run.stdout.splitlines())


def test_reports_where_the_package_does_not_import(tmp_path):
    distribution(tmp_path, other_set(), '0.10.9')
    plain = subprocess.run([sys.executable, '-c', 'import partialnet_mm'], capture_output=True, text=True,
                           env=dict(os.environ, PYTHONPATH=str(tmp_path)), timeout=60)
    assert plain.returncode == 1
    assert 'both sets of packages are in one environment' in plain.stderr
    run = run_doctor(path=str(tmp_path))
    assert run.returncode == 1, run.stdout + run.stderr
    assert 'both sets of packages' in run.stdout
    assert 'tools/env/setup_env.sh onedl' in run.stdout
    assert 'PartialNet-T0 on cpu' in run.stdout, 'the other checks still run'


def test_names_a_package_that_does_not_import_and_a_version_out_of_range(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text('raise ImportError("undefined symbol: _ZN3c10")')
    name = next(d for d in ('onedl-mmcv', 'mmcv') if compat.installed_version(d))
    distribution(tmp_path, name, '1.7.0')
    run = run_doctor(path=str(tmp_path))
    assert run.returncode == 1
    line = next(line for line in run.stdout.splitlines() if line.startswith('FAILED  import mmcv'))
    assert 'undefined symbol: _ZN3c10' in line
    assert 'pip install --force-reinstall' in run.stdout
    assert f"pip install '{name}>=2.0.1,<3'" in run.stdout
    assert f'{name} 1.7.0' in run.stdout


def test_the_check_of_packages_needs_the_standard_library_only():
    code = ('import importlib.util, sys\n'
            f'spec = importlib.util.spec_from_file_location("compat", {compat.__file__!r})\n'
            'module = importlib.util.module_from_spec(spec)\n'
            'before = set(sys.modules)\n'
            'spec.loader.exec_module(module)\n'
            'new = {name.split(".")[0] for name in set(sys.modules) - before}\n'
            'print(sorted(new & {"torch", "mmengine", "mmcv", "numpy", "packaging"}))')
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == '[]'
