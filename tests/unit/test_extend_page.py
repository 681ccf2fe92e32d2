# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The gate and the token mixer of docs/extend.md: they run, train and merge as the page says."""
import importlib
import re
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from tests.helpers.libraries import ROOT, parameters_without_gradient
from tests.helpers.networks import random_loss, relative_error

BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'extend.md').read_text(), re.DOTALL)
MODULES = dict(re.match(r'# (my_\w+)\.py\n(.*)', block, re.DOTALL).groups() for block in BLOCKS if block[0] == '#')
CONFIGS = {name: block for block in BLOCKS for name in MODULES if block[0] != '#' and f"'{name}'" in block}


@pytest.fixture
def page_config(request, tmp_path, monkeypatch):
    """A config of the page, loaded as a training loads it, with its module on the path."""
    name = request.param
    (tmp_path / f'{name}.py').write_text(MODULES[name])
    (tmp_path / 'config.py').write_text(CONFIGS[name])
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    registered = dict(MODELS.module_dict)
    yield Config.fromfile(tmp_path / 'config.py')
    del sys.modules[name]
    for type_name in set(MODELS.module_dict) - set(registered):
        del MODELS.module_dict[type_name]


def test_the_page_has_a_gate_and_a_mixer():
    assert set(MODULES) == set(CONFIGS) == {'my_gate', 'my_mixer'}


@pytest.mark.parametrize('page_config, type_name, names', [
    ('my_gate', 'MaxGate', [f'stages.{i}.{j}.token_mixer.gate' for i, j in ((0, 0), (1, 0), (2, 0), (2, 1))]),
    ('my_mixer', 'LargeKernelMixer', ['stages.0.0.token_mixer', 'stages.1.0.token_mixer']),
], indirect=['page_config'])
def test_page_trains_and_merges(page_config, type_name, names, tiny_arch, randomize_norms):
    model = MODELS.build(dict(page_config.model.backbone, arch=tiny_arch))
    assert [name for name, module in model.named_modules() if type(module).__name__ == type_name] == names
    x = torch.randn(2, 3, 96, 96)
    random_loss(model.train()(x)).backward()
    assert parameters_without_gradient(model) == []
    randomize_norms(model).eval()
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        assert relative_error(model(x), expected) < 1e-5
    assert [name for name, module in model.named_modules() if type(module).__name__ == type_name] == names
