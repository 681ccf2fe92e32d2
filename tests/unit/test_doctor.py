# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The doctor's checks, one by one."""
import pytest
import torch

from partialnet_mm import doctor


@pytest.mark.parametrize('kept, pooled', [([0, 1, 2], 2.5), ([0, 2], 0.)])
def test_wrong_ops_fail(monkeypatch, kept, pooled):
    pytest.importorskip('mmcv._ext')
    monkeypatch.setattr(doctor, 'run_ops', lambda device: (kept, pooled))
    findings = list(doctor.check_ops())
    assert [finding.status for finding in findings] == ['FAILED'] * len(findings)
    assert findings[0].fix


def test_ops_for_another_device_are_named(monkeypatch):
    pytest.importorskip('mmcv._ext')

    def raises(device):
        raise RuntimeError(f'nms_impl: implementation for device {device} not found')

    monkeypatch.setattr(doctor, 'run_ops', raises)
    finding = next(doctor.check_ops())
    assert finding.status == 'FAILED'
    assert 'implementation for device cpu not found' in finding.found
    assert 'tools/env/setup_env.sh' in finding.fix


def test_reference_holds_in_double_precision():
    values = doctor.reference_run()
    assert values == pytest.approx(doctor.REFERENCE, rel=1e-7)


def test_a_network_that_computes_something_else_fails(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, 'relu6', torch.sigmoid)
    statuses = {finding.status for finding in doctor.check_network()}
    assert statuses == {'FAILED'}


def test_hidden_gpu_is_a_failure(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(doctor.shutil, 'which', lambda name: f'/usr/bin/{name}')
    finding, = doctor.check_gpu()
    assert finding.status == 'FAILED'
    assert 'CUDA_VISIBLE_DEVICES' in finding.fix


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def check_nothing():
        raise OSError('no such library')
        yield

    monkeypatch.setattr(doctor, 'CHECKS', (check_nothing, ))
    finding, = doctor.examine()
    assert (finding.status, finding.check, finding.found) == ('FAILED', 'nothing', 'OSError: no such library')
    assert '1 of 1 checks failed' in doctor.report([finding])
