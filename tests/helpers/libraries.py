# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What tests of several libraries share: the README's snippets, and tiny batches for each library."""
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from tests.helpers.batches import loss_of, random_batch

ROOT = Path(__file__).resolve().parents[2]


def shipped_config(package: str, name: str) -> Path:
    """Path of a config that a library ships; skips where the library is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f'{package} is not installed')
    return Path(spec.origin).parent / '.mim' / 'configs' / name


def readme_snippets() -> dict[str, str]:
    """The configs of docs/use_in_your_config.md by the name in their first line, ``# my_detector.py``."""
    pages = (ROOT / 'README.md').read_text() + (ROOT / 'docs' / 'use_in_your_config.md').read_text()
    blocks = re.findall(r'```python\n# (my_\w+\.py)\n(.*?)```', pages, re.DOTALL)
    snippets = dict(blocks)
    assert set(blocks) == set(snippets.items()), 'a snippet differs between README.md and docs/use_in_your_config.md'
    return snippets


def build_model(cfg: Config, init: bool = True) -> nn.Module:
    """The model of a config, in its library's scope, with initialized weights unless ``init`` is False."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        if init:
            model.init_weights()
    return model


def training_loss(cfg: Config, model: nn.Module, batch_size: int = 2) -> torch.Tensor:
    """The summed loss of one random batch, of the kind that the model's library trains on."""
    return loss_of(cfg, model, random_batch(cfg, batch_size=batch_size))


def parameters_without_gradient(module: nn.Module) -> list[str]:
    """Names of the parameters that a backward pass has left without a gradient, or with one that is not finite."""
    return [name for name, p in module.named_parameters()
            if p.grad is None or not torch.isfinite(p.grad).all()]
