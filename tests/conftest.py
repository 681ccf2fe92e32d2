# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Fixtures that tests of several kinds share."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.visualization import Visualizer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def restored_state() -> Iterator[None]:
    """Restores afterwards what libraries keep for the whole process.

    mmengine has no public functions that return or remove its instances and loaders.
    """
    dtype, threads, tuned = torch.get_default_dtype(), torch.get_num_threads(), torch.backends.cudnn.benchmark
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    schemes = dict(CheckpointLoader._schemes)
    instances = {manager: dict(manager._instance_dict) for manager in (
        DefaultScope, MMLogger, MessageHub, Visualizer)}
    for manager in instances:
        manager._instance_dict.clear()
    # A logger keeps the stream that it begins with, and that of a fixture's set-up under capsys is closed afterwards.
    MMLogger.get_current_instance()
    yield
    for manager, kept in instances.items():
        manager._instance_dict.clear()
        manager._instance_dict.update(kept)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = tuned
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
    CheckpointLoader._schemes = schemes


@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Checks of data leave their records in a folder of the tests, also from processes that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PARTIALNET_MM_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='module', autouse=True)
def module_state() -> Iterator[None]:
    """The fixtures of a module change nothing for the next module."""
    with restored_state():
        yield


@pytest.fixture(autouse=True)
def global_state(module_state: None) -> Iterator[None]:
    """Each test draws the same random numbers and changes nothing for the next test."""
    with restored_state():
        torch.manual_seed(0)
        yield


@pytest.fixture
def tiny_arch() -> dict:
    """An arch of five blocks, for what does not depend on a variant."""
    return dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=2, act_cfg=dict(type='ReLU', inplace=True))


@pytest.fixture
def randomize_norms() -> Callable[[nn.Module], nn.Module]:
    """Gives norms the weights and statistics of a trained network, which merging and loading must carry over.

    Freshly built norms are almost the identity: a test with them proves nothing.
    """

    def randomize(module: nn.Module) -> nn.Module:
        for norm in module.modules():
            if isinstance(norm, (_BatchNorm, nn.LayerNorm, nn.GroupNorm)) and norm.weight is not None:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.5)
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                nn.init.normal_(norm.running_mean, std=0.5)
                nn.init.uniform_(norm.running_var, 0.5, 2)
        return module

    return randomize
