# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The packages that this one works with, and how to fix an environment that does not fit.

Needs the standard library only, so that it can report where the rest cannot be imported.
"""
import importlib.util
import re
import sys
from importlib import metadata
from typing import NamedTuple


class Requirement(NamedTuple):
    """A package, the versions that fit, and the distributions that contain it."""

    module: str
    at_least: str
    below: str
    distributions: tuple[str, ...]
    needed: bool

    @property
    def range(self) -> str:
        return f'>={self.at_least},<{self.below}'


# Distributions are in the order onedl, openmmlab, others.
REQUIREMENTS = (
    Requirement('torch', '2.1', '3', ('torch', ), needed=True),
    Requirement('mmengine', '0.10', '1', ('onedl-mmengine', 'mmengine', 'mmengine-lite'), needed=True),
    Requirement('mmcv', '2.0.1', '3', ('onedl-mmcv', 'mmcv', 'mmcv-lite'), needed=True),
    Requirement('safetensors', '0.4', '1', ('safetensors', ), needed=True),
    Requirement('mmdet', '3.2', '4', ('onedl-mmdetection', 'mmdet'), needed=False),
    Requirement('mmseg', '1.2', '2', ('onedl-mmsegmentation', 'mmsegmentation'), needed=False),
    Requirement('mmpretrain', '1.2', '2', ('onedl-mmpretrain', 'mmpretrain'), needed=False),
)


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def find_owners() -> dict[str, dict[str, str]]:
    """Versions of the installed distributions that contain each package, by distribution, by package name."""
    versions = {r.module: {d: installed_version(d) for d in r.distributions} for r in REQUIREMENTS}
    return {module: {d: v for d, v in found.items() if v} for module, found in versions.items()}


def find_problems() -> list[str]:
    """What keeps PartialNet from working here, one sentence each: package, version, what is allowed, how to fix it."""
    owners = find_owners()
    problems = []
    onedl = sorted(d for found in owners.values() for d in found if d.startswith('onedl-'))
    openmmlab = sorted(d for r in REQUIREMENTS for d in owners[r.module]
                       if not d.startswith('onedl-') and d not in ('torch', 'safetensors'))
    if onedl and openmmlab:
        problems.append(
            f'both sets of packages are in one environment ({", ".join(onedl)} and {", ".join(openmmlab)}): they write '
            'into the same folders and break each other. Only one of them is allowed: make a new environment '
            '(tools/env/setup_env.sh onedl, or openmmlab)')
    for requirement in REQUIREMENTS:
        found = owners[requirement.module]
        if not found and importlib.util.find_spec(requirement.module) is None:
            if requirement.needed:
                wanted = f'{requirement.distributions[0]}{requirement.range}'
                problems.append(f'{requirement.module} is not installed; {requirement.range} is needed: '
                                f"pip install '{wanted}'")
            continue
        for distribution, version in found.items():
            if not _digits(requirement.at_least) <= _digits(version) < _digits(requirement.below):
                problems.append(f'{distribution} {version} is installed; {requirement.module} must be '
                                f"{requirement.range}: pip install '{distribution}{requirement.range}'")
    missing_ops = _missing_ops(owners)
    if missing_ops:
        problems.append(missing_ops)
    return problems


def check_environment() -> None:
    """Raises an ImportError with all of :func:`find_problems` if PartialNet cannot work in this environment."""
    problems = find_problems()
    if problems:
        raise ImportError('partialnet_mm cannot work in this environment:\n' + '\n'.join(f'- {p}' for p in problems))


def has_torch() -> bool:
    """Whether torch is installed, be it broken; where it is not, only :mod:`partialnet_mm.deploy` works."""
    return importlib.util.find_spec('torch') is not None


def is_starting(*modules: str) -> bool:
    """Whether this is ``python -m`` with one of some modules, for which Python imports the package first."""
    # sys.argv[0] is '-m' while Python locates the module.
    return sys.argv[:1] == ['-m'] and any(module in sys.orig_argv for module in modules)


def _missing_ops(owners: dict[str, dict[str, str]]) -> str | None:
    """mmdet and mmseg need mmcv's compiled ops; the backbone and mmpretrain do not."""
    users = [module for module in ('mmdet', 'mmseg') if owners[module]]
    if not users or not owners['mmcv']:
        return None
    try:
        if importlib.util.find_spec('mmcv._ext') is not None:
            return None
    except Exception:  # Python imports mmcv to find it; the doctor reports an mmcv that does not import
        return None
    (distribution, version), *_ = owners['mmcv'].items()
    full = distribution.replace('-lite', '')
    return (f'{distribution} {version} has no compiled ops (mmcv._ext is missing), which {" and ".join(users)} need: '
            f'pip uninstall -y {distribution}; MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir '
            f'--no-binary {full} {full}=={version}, after torch, or tools/env/setup_env.sh, which does it')


def _digits(version: str) -> tuple[int, ...]:
    """The numbers that a version starts with: '2.14.1+cpu' gives (2, 14, 1)."""
    match = re.match(r'\d+(\.\d+)*', version)
    return tuple(int(number) for number in match.group().split('.')) if match else ()
