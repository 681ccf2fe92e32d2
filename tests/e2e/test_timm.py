# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""timm's registry in new processes, and the converter of checkpoints as a command."""
import subprocess
import sys

import pytest
import torch

from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import run_main

timm = pytest.importorskip('timm')
TOOL = 'tools/model_converters/timm_to_mm.py'


def test_importing_timm_first_registers_the_variants():
    code = "import timm, partialnet_mm; print(len(timm.list_models('partialnet_*')))"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ['6'], done.stderr


def test_the_converter_in_both_directions(monkeypatch, capsys, tmp_path):
    import partialnet_mm.timm  # noqa: F401
    model = timm.create_model('partialnet_t0', num_classes=3)
    source, ours, back = (tmp_path / name for name in ('last.pth.tar', 'ours.safetensors', 'back.pth'))
    torch.save(dict(arch='partialnet_t0', epoch=2, state_dict=model.state_dict()), source)
    for arguments in ((source, ours), (ours, back, '--reverse')):
        assert run_main(monkeypatch, TOOL, *arguments) == 0
        assert capsys.readouterr().out == f'{arguments[1]}: {len(model.state_dict())} tensors\n'
    assert torch.equal(timm.create_model('partialnet_t0', num_classes=3, checkpoint_path=back).get_classifier().weight,
                       model.get_classifier().weight)

    assert run_main(monkeypatch, TOOL, source, ours) == 2
    assert 'ours.safetensors' in capsys.readouterr().err
    torch.save(timm.create_model('fasternet_t0').state_dict(), source)
    assert run_main(monkeypatch, TOOL, source, ours, '--force') == 2
    assert 'was not converted: no PartialNet: it has no backbone.' in capsys.readouterr().err
