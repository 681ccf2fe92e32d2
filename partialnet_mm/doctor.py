# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks whether PartialNet works in this environment, and reports how to fix what does not.

``python -m partialnet_mm.doctor`` prints a table of checks and exits with 0 if all passed and with 1 if one failed. It
also runs where ``import partialnet_mm`` fails: each check imports what it needs itself.
"""
import importlib
import importlib.util
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import NamedTuple

from .compat import REQUIREMENTS, find_owners, find_problems

OK, NOTE, FAILED = 'ok', 'note', 'FAILED'

#: Libraries whose registry must find PartialNet.
SCOPES = ('mmengine', 'mmdet', 'mmseg', 'mmpretrain')

# Outputs and gradients of `reference_run` in float64. They change only if the network itself changes;
# `python -c "from partialnet_mm.doctor import *; print(reference_run())"` prints them.
REFERENCE = dict(map0=0.482926405, map1=0.514242144, map2=0.645787593, map3=2.026539366,
                 stem=6.254256462, gate=0.221166171, position_bias=0.107995815)
#: Largest relative difference between float32 kernels of different machines.
TOLERANCE = 1e-3
#: What the report shows of mmengine's description of the environment; the packages have lines of their own.
DESCRIBED = re.compile(r'CUDA available|GPU [\d,]+|CUDA_HOME|NVCC|GCC|MSVC|TorchVision|OpenCV')


class Finding(NamedTuple):
    """The outcome of one check: 'ok', 'note' or 'FAILED', what was found, and the command that fixes it."""

    status: str
    check: str
    found: str
    fix: str = ''


def check_python() -> Iterator[Finding]:
    """The interpreter and the machine, and mmengine's description of them where it imports."""
    yield Finding(OK, 'python', f'{sys.version.split()[0]} in {sys.prefix}, {sys.platform}, {os.cpu_count()} cores')
    try:
        from mmengine.utils.dl_utils import collect_env
    except Exception:  # check_imports reports why
        return
    for name, value in collect_env().items():
        if DESCRIBED.fullmatch(name):
            yield Finding(OK, name, str(value))


def check_packages() -> Iterator[Finding]:
    """Versions and distributions of the packages, compared with the allowed and the tested ones."""
    for problem in find_problems():
        found, _, fix = problem.partition(': ')
        yield Finding(FAILED, 'packages', found, fix)
    tested = _tested_versions()
    for requirement in REQUIREMENTS:
        owners = find_owners()[requirement.module]
        if not owners:
            if importlib.util.find_spec(requirement.module) is not None:
                yield Finding(NOTE, requirement.module, 'installed, but by no known distribution')
            elif not requirement.needed:
                yield Finding(NOTE, requirement.module, 'not installed (optional)')
            continue
        for distribution, version in owners.items():
            pins = tested.get(distribution, [])
            known = version.split('+')[0] in pins
            others = f'tested: {", ".join(pins)}; ' if pins else ''
            comparison = 'tested' if known else f'{others}allowed: {requirement.range}'
            yield Finding(OK if known else NOTE, requirement.module, f'{distribution} {version} ({comparison})')


def check_imports() -> Iterator[Finding]:
    """Whether every installed package imports."""
    for requirement in REQUIREMENTS:
        if importlib.util.find_spec(requirement.module) is None:
            continue
        try:
            importlib.import_module(requirement.module)
        except Exception as error:  # a broken binary can raise any error
            owners = find_owners()[requirement.module] or {requirement.distributions[0]: ''}
            distribution, version = next(iter(owners.items()))
            yield Finding(FAILED, f'import {requirement.module}', _describe(error),
                          f"pip install --force-reinstall --no-deps '{distribution}=={version}'" if version
                          else f"pip install '{distribution}{requirement.range}'")
            continue
        spec = importlib.util.find_spec(requirement.module)
        yield Finding(OK, f'import {requirement.module}', os.path.dirname(spec.origin or ''))


def check_gpu() -> Iterator[Finding]:
    """Whether torch can use the GPU of the machine."""
    import torch
    if torch.cuda.is_available():
        value = torch.ones(8, device='cuda').sum().item()
        yield _result(value == 8, 'GPU', f'CUDA {torch.version.cuda}; a sum of 8 ones is {value:g}', '')
    elif os.path.exists('/proc/driver/nvidia/version') or shutil.which('nvidia-smi'):
        yield Finding(FAILED, 'GPU', f'the machine has an NVIDIA driver, but torch {torch.__version__} finds no GPU',
                      'nvidia-smi must list it, CUDA_VISIBLE_DEVICES must not hide it, and torch must be a CUDA build: '
                      'pip install --force-reinstall torch, then tools/env/setup_env.sh to compile mmcv again')
    else:
        yield Finding(NOTE, 'GPU', 'none: everything runs on the CPU')


def check_ops() -> Iterator[Finding]:
    """Whether mmcv's compiled ops, which mmdet and mmseg need, compute NMS and RoIAlign correctly."""
    import torch
    users = [name for name in ('mmdet', 'mmseg') if importlib.util.find_spec(name) is not None]
    if importlib.util.find_spec('mmcv._ext') is None:
        # If they are needed, check_packages reports how to get them.
        if not users:
            yield Finding(NOTE, 'mmcv ops', 'not compiled; the backbone and mmpretrain do not need them')
        return
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        try:
            kept, pooled = run_ops(device)
        except Exception as error:
            yield Finding(FAILED, f'mmcv ops on {device}', _describe(error),
                          f'built for another torch, or without {device}: remove mmcv and '
                          'run tools/env/setup_env.sh, which compiles it for the installed torch')
            continue
        yield _result(kept == [0, 2] and abs(pooled - 2.5) < 1e-5, f'mmcv ops on {device}',
                      f'NMS keeps {kept} (right: [0, 2]), RoIAlign gives {pooled:g} (right: 2.5)',
                      'tools/env/setup_env.sh, after removing mmcv')


def run_ops(device: str) -> tuple[list[int], float]:
    """The boxes of three that mmcv's NMS keeps, [0, 2], and the mean of a 4 x 4 ramp by RoIAlign, 2.5."""
    import torch
    from mmcv.ops import RoIAlign, nms
    boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]], device=device)
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    ramp = (torch.arange(4., device=device) + 1).expand(1, 1, 4, 4).contiguous()
    rois = torch.tensor([[0., 0, 0, 4, 4]], device=device)
    pooled = RoIAlign((1, 1), spatial_scale=1.0, sampling_ratio=4, aligned=True)(ramp, rois)
    return kept.tolist(), pooled.item()


def check_registries() -> Iterator[Finding]:
    """Whether the registry of every installed library resolves ``type='PartialNet'`` without a scope."""
    import partialnet_mm.models as models
    for scope in SCOPES:
        if importlib.util.find_spec(scope) is None:
            continue
        registry = importlib.import_module(f'{scope}.registry').MODELS
        found = registry.get('PartialNet')
        yield _result(found is models.PartialNet, f'registry {scope}',
                      f"'PartialNet' is {getattr(found, '__module__', found)}",
                      'pip install -e . in the folder of this project, and add custom_imports = '
                      "dict(imports=['partialnet_mm'], allow_failed_imports=False) to the config")


def check_network() -> Iterator[Finding]:
    """Whether forward and backward of PartialNet-T0 give the stored values."""
    import torch
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        got = reference_run(device, torch.float32)
        # Unlike Python's, torch's maximum is NaN where any value is.
        worst = torch.tensor([abs(got[name] - value) / abs(value) for name, value in REFERENCE.items()]).max().item()
        yield _result(worst < TOLERANCE, f'PartialNet-T0 on {device}',
                      f'outputs and gradients differ by {worst:.1e} from the stored ones (allowed {TOLERANCE:g})',
                      'pip install --force-reinstall torch at the tested version, or report a bug with this table')


def reference_run(device: str = 'cpu', dtype: object = None) -> dict[str, float]:
    """Forward and backward of PartialNet-T0 with weights from a formula; ``dtype`` None is float64.

    Returns the mean absolute value of each of the four feature maps, and the norms of the gradients of the stem, of a
    gate and of the position bias.
    """
    import torch

    from partialnet_mm.models import PartialNet
    # The batch statistics of two small images would amplify rounding errors.
    model = PartialNet('t0', out_indices=(0, 1, 2, 3)).to(device, dtype or torch.float64).eval()

    def numbers(size: Sequence[int], seed: int) -> 'torch.Tensor':
        n = torch.arange(math.prod(size))
        values = (n * n * 40503 + n * (2 * seed + 1) * 3011 + seed * 7919) % 65521
        return (values.to(torch.float64) / 32760 - 1).reshape(size).to(device, dtype or torch.float64)

    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            if name.endswith('bias') and parameter.dim() == 1:
                parameter.zero_()
            elif parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(numbers(parameter.shape, seed) * math.sqrt(3 / fan_in))
    # TF32, the default for convolutions on a GPU, is not precise enough for this comparison.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        maps = model(numbers((2, 3, 64, 64), 0))
        sum(out.square().mean() for out in maps).backward()
    values = {f'map{i}': out.abs().mean().item() for i, out in enumerate(maps)}
    gradients = dict(stem=model.downsample_layers[0], gate=model.stages[1][0].token_mixer.gate,
                     position_bias=model.stages[3][0].token_mixer.position_bias)
    for name, module in gradients.items():
        values[name] = torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item()
    return values


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python, check_packages, check_imports, check_gpu, check_ops, check_registries, check_network)


def examine() -> list[Finding]:
    """Runs all checks; an error in a check is a finding, too."""
    findings = []
    for check in CHECKS:
        name = check.__name__.replace('check_', '')
        try:
            findings += check()
        except Exception as error:
            findings.append(Finding(FAILED, name, _describe(error),
                                    'fix what failed above first; if nothing did, the installation is broken: '
                                    'tools/env/setup_env.sh makes a new environment'))
    return findings


def report(findings: Sequence[Finding]) -> str:
    """The findings as a table, with the commands that fix them below it."""
    width = max(len(finding.check) for finding in findings)
    lines = [f'{f.status:6}  {f.check:{width}}  {f.found}' for f in findings]
    failed = [f for f in findings if f.status == FAILED]
    if not failed:
        return '\n'.join([*lines, '', 'PartialNet works here.'])
    lines += ['', f'{len(failed)} of {len(findings)} checks failed. To fix them:']
    lines += [f'- {f.check}: {f.fix}' for f in failed]
    return '\n'.join(lines)


def main() -> int:
    """Prints the table; returns 0 if PartialNet works, otherwise 1."""
    findings = examine()
    print(report(findings))
    return int(any(finding.status == FAILED for finding in findings))


def _tested_versions() -> dict[str, list[str]]:
    """Versions that the two sets of packages pin, by distribution, from the metadata of the installed project."""
    try:
        declared = metadata.requires('partialnet-mm') or []
    except metadata.PackageNotFoundError:
        return {}
    tested: dict[str, list[str]] = {}
    for line in declared:
        pin = re.match(r'([\w-]+)==([\w.]+)\s*;\s*extra == .(onedl|openmmlab)', line)
        if pin:
            tested.setdefault(pin.group(1), []).append(pin.group(2))
    return tested


def _result(right: bool, check: str, found: str, fix: str) -> Finding:
    return Finding(OK, check, found) if right else Finding(FAILED, check, found, fix)


def _describe(error: BaseException) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


if __name__ == '__main__':
    sys.exit(main())
