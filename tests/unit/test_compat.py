# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Environments that do not fit, simulated by what is installed and what can be imported."""
import importlib.util
from importlib import metadata

import pytest

from partialnet_mm import compat

ONEDL = {'torch': '2.14.1+cpu', 'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1',
         'onedl-mmsegmentation': '1.4.2', 'onedl-mmpretrain': '1.3.6'}
OPENMMLAB = {'torch': '2.1.2', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0', 'mmsegmentation': '1.2.2',
             'mmpretrain': '1.2.0'}
SETS = {'onedl': ONEDL, 'openmmlab': OPENMMLAB}


@pytest.fixture
def environment(monkeypatch):
    """Sets what is installed: versions by distribution, and modules that can be imported without one."""

    def install(versions, ops=True, modules=('safetensors', )):

        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        def find_spec(name):
            if name == 'mmcv._ext':
                return object() if ops else None
            return object() if name in modules else None

        monkeypatch.setattr(metadata, 'version', version)
        monkeypatch.setattr(importlib.util, 'find_spec', find_spec)

    return install


@pytest.mark.parametrize('name', list(SETS))
def test_either_set_fits(name, environment):
    environment(SETS[name])
    assert compat.find_problems() == []
    assert compat.check_environment() is None
    owners = compat.find_owners()
    assert list(owners) == ['torch', 'mmengine', 'mmcv', 'safetensors', 'mmdet', 'mmseg', 'mmpretrain']
    assert {d: v for found in owners.values() for d, v in found.items()} == SETS[name]


def test_this_environment_fits():
    assert compat.find_problems() == []


@pytest.mark.parametrize('versions', [
    {'torch': '2.1.2', 'mmengine': '0.10.7', 'mmcv-lite': '2.1.0'},
    {'torch': '2.1.0', 'mmengine-lite': '0.10.0', 'mmcv-lite': '2.0.1', 'mmpretrain': '1.2.0'},
])
def test_backbone_and_classifiers_need_no_ops(versions, environment):
    environment(versions, ops=False)
    assert compat.find_problems() == []


@pytest.mark.parametrize('module', ['torch', 'mmengine', 'mmcv'])
@pytest.mark.parametrize('name', list(SETS))
def test_missing(module, name, environment):
    versions = {d: v for d, v in SETS[name].items() if module not in d}
    environment(versions)
    (problem, ) = compat.find_problems()
    requirement = next(r for r in compat.REQUIREMENTS if r.module == module)
    wanted = {'torch': 'torch', 'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv'}[module]
    assert problem == (f'{module} is not installed; {requirement.range} is needed: '
                       f"pip install '{wanted}{requirement.range}'")


def test_safetensors_is_needed(environment):
    environment(ONEDL, modules=())
    (problem, ) = compat.find_problems()
    assert problem == "safetensors is not installed; >=0.4,<1 is needed: pip install 'safetensors>=0.4,<1'"


def test_optional_packages_may_be_missing(environment):
    environment({d: v for d, v in ONEDL.items() if d in ('torch', 'onedl-mmengine', 'onedl-mmcv')})
    assert compat.find_problems() == []


def test_a_package_of_unknown_owner_is_taken_as_it_is(environment):
    environment({'torch': '2.3.0', 'mmengine': '0.10.7'}, modules=['mmcv', 'safetensors'])
    assert compat.find_problems() == []


@pytest.mark.parametrize('distribution, version, module, allowed', [
    ('torch', '1.13.1', 'torch', '>=2.1,<3'), ('torch', '2.0.1+cu118', 'torch', '>=2.1,<3'),
    ('torch', '3.0.0', 'torch', '>=2.1,<3'), ('mmengine', '0.9.1', 'mmengine', '>=0.10,<1'),
    ('mmengine', '1.0', 'mmengine', '>=0.10,<1'), ('mmcv', '1.7.2', 'mmcv', '>=2.0.1,<3'),
    ('mmcv', '2.0.0', 'mmcv', '>=2.0.1,<3'), ('mmcv', '2.0.0rc4', 'mmcv', '>=2.0.1,<3'),
    ('mmdet', '2.28.2', 'mmdet', '>=3.2,<4'), ('mmsegmentation', '1.1.2', 'mmseg', '>=1.2,<2'),
    ('mmpretrain', '1.0.0', 'mmpretrain', '>=1.2,<2'), ('mmdet', 'unknown', 'mmdet', '>=3.2,<4'),
])
def test_versions_that_do_not_fit(distribution, version, module, allowed, environment):
    environment({**OPENMMLAB, distribution: version})
    assert compat.find_problems() == [f'{distribution} {version} is installed; {module} must be {allowed}: '
                                      f"pip install '{distribution}{allowed}'"]


@pytest.mark.parametrize('distribution, version', [
    ('torch', '2.1'), ('torch', '2.1.0+cu121'), ('torch', '2.99'), ('mmengine', '0.10.0'), ('mmcv', '2.0.1'),
    ('mmcv', '2.2.0'), ('mmdet', '3.2.0'), ('mmsegmentation', '1.2'), ('mmpretrain', '1.2.0rc1')
])
def test_versions_that_fit(distribution, version, environment):
    environment({**OPENMMLAB, distribution: version})
    assert compat.find_problems() == []


def test_both_sets_at_once(environment):
    environment({**ONEDL, 'mmcv': '2.1.0', 'mmdet': '3.3.0'})
    problem = compat.find_problems()[0]
    for fragment in ('both sets of packages are in one environment', 'onedl-mmcv', 'onedl-mmdetection',
                     'and mmcv, mmdet)', 'Only one of them is allowed', 'tools/env/setup_env.sh onedl, or openmmlab'):
        assert fragment in problem
    assert 'torch' not in problem


@pytest.mark.parametrize('name, mmcv, users', [('onedl', 'onedl-mmcv 2.3.6', 'mmdet and mmseg'),
                                               ('openmmlab', 'mmcv 2.1.0', 'mmdet and mmseg')])
def test_mmcv_without_ops(name, mmcv, users, environment):
    environment(SETS[name], ops=False)
    (problem, ) = compat.find_problems()
    distribution, version = mmcv.split()
    for fragment in (f'{mmcv} has no compiled ops (mmcv._ext is missing), which {users} need',
                     f'pip uninstall -y {distribution};', 'MMCV_WITH_OPS=1', '--no-build-isolation', '--no-cache-dir',
                     f'{distribution}=={version}, after torch'):
        assert fragment in problem


def test_mmcv_lite_beside_mmdet(environment):
    environment({'torch': '2.1.2', 'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'mmdet': '3.3.0'}, ops=False)
    (problem, ) = compat.find_problems()
    assert problem.startswith('mmcv-lite 2.1.0 has no compiled ops (mmcv._ext is missing), which mmdet need')
    assert 'pip uninstall -y mmcv-lite; ' in problem
    assert ' mmcv==2.1.0,' in problem


def test_all_problems_in_one_error(environment):
    environment({'torch': '1.8.0', 'mmcv': '1.7.0'})
    with pytest.raises(ImportError) as error:
        compat.check_environment()
    lines = str(error.value).splitlines()
    assert lines[0] == 'partialnet_mm cannot work in this environment:'
    assert [line.split()[:2] for line in lines[1:]] == [['-', 'torch'], ['-', 'mmengine'], ['-', 'mmcv']]
    assert all(' pip install ' in line for line in lines[1:])
