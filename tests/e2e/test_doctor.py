# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import os
import subprocess
import sys
from importlib import metadata, util

import pytest
import torch

from partialnet_mm import compat, doctor


def run_doctor(*, path=''):
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    if path:
        environment['PYTHONPATH'] = path
    return subprocess.run([sys.executable, '-m', 'partialnet_mm.doctor'], capture_output=True, text=True,
                          env=environment, timeout=120)


def distribution(folder, name, version):
    """An installed distribution, as far as metadata tells."""
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


def other_set():
    """An owner of mmengine from the set that is not installed."""
    return 'mmengine' if compat.installed_version('onedl-mmengine') else 'onedl-mmengine'


def test_all_is_well_here():
    run = run_doctor()
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'PartialNet works here.' in run.stdout
    for scope in ('mmengine', 'mmdet', 'mmseg', 'mmpretrain'):
        if util.find_spec(scope):
            assert f"registry {scope}" in run.stdout
    if util.find_spec('mmdet'):
        assert 'NMS keeps [0, 2] (right: [0, 2]), RoIAlign gives 2.5' in run.stdout
    assert f'torch {metadata.version("torch")}' in run.stdout


def test_speaks_where_the_package_does_not_import(tmp_path):
    distribution(tmp_path, other_set(), '0.10.9')
    plain = subprocess.run([sys.executable, '-c', 'import partialnet_mm'], capture_output=True, text=True,
                           env=dict(os.environ, PYTHONPATH=str(tmp_path)), timeout=60)
    assert plain.returncode == 1
    assert 'both sets of packages are in one environment' in plain.stderr
    run = run_doctor(path=str(tmp_path))
    assert run.returncode == 1, run.stdout + run.stderr
    assert 'both sets of packages' in run.stdout
    assert 'tools/env/setup_env.sh onedl' in run.stdout
    assert 'PartialNet-T0 on cpu' in run.stdout, 'the other checks run all the same'


def test_names_a_package_that_does_not_import(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text('raise ImportError("undefined symbol: _ZN3c10")')
    run = run_doctor(path=str(tmp_path))
    assert run.returncode == 1
    line = next(line for line in run.stdout.splitlines() if line.startswith('FAILED  import mmcv'))
    assert 'undefined symbol: _ZN3c10' in line
    assert 'pip install --force-reinstall' in run.stdout


def test_version_out_of_range_is_a_failure_with_its_command(tmp_path):
    name = next(d for d in ('onedl-mmcv', 'mmcv') if compat.installed_version(d))
    distribution(tmp_path, name, '1.7.0')
    run = run_doctor(path=str(tmp_path))
    assert run.returncode == 1
    assert f"pip install '{name}>=2.0.1,<3'" in run.stdout
    assert f'{name} 1.7.0' in run.stdout


@pytest.mark.parametrize('kept, pooled', [([0, 1, 2], 2.5), ([0, 2], 0.)])
def test_wrong_ops_fail(monkeypatch, kept, pooled):
    pytest.importorskip('mmcv._ext')
    monkeypatch.setattr(doctor, 'run_ops', lambda device: (kept, pooled))
    findings = list(doctor.check_ops())
    assert [finding.status for finding in findings] == ['FAILED'] * len(findings)
    assert findings[0].mend


def test_ops_for_another_device_are_named(monkeypatch):
    pytest.importorskip('mmcv._ext')

    def raises(device):
        raise RuntimeError(f'nms_impl: implementation for device {device} not found')

    monkeypatch.setattr(doctor, 'run_ops', raises)
    finding = next(doctor.check_ops())
    assert finding.status == 'FAILED'
    assert 'implementation for device cpu not found' in finding.found
    assert 'tools/env/setup_env.sh' in finding.mend


def test_reference_holds_in_double_precision():
    values = doctor.reference_run()
    assert values == pytest.approx(doctor.REFERENCE, rel=1e-7)


def test_a_network_that_computes_something_else_fails(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, 'hardsigmoid', torch.sigmoid)
    statuses = {finding.status for finding in doctor.check_network()}
    assert statuses == {'FAILED'}


def test_hidden_gpu_is_a_failure(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(doctor.shutil, 'which', lambda name: f'/usr/bin/{name}')
    finding, = doctor.check_gpu()
    assert finding.status == 'FAILED'
    assert 'CUDA_VISIBLE_DEVICES' in finding.mend


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def check_nothing():
        raise OSError('no such library')
        yield

    monkeypatch.setattr(doctor, 'CHECKS', (check_nothing, ))
    finding, = doctor.examine()
    assert (finding.status, finding.check, finding.found) == ('FAILED', 'nothing', 'OSError: no such library')
    assert '1 of 1 checks failed' in doctor.report([finding])
