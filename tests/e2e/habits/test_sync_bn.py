# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""SyncBN, as far as one process goes: its gathering needs two GPUs."""
import torch
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn

from partialnet_mm import PartialNet
from tests.helpers.libraries import build_model


def norms(module):
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def backbone_of(path):
    return build_model(Config.fromfile(path)).backbone


def test_every_norm_of_the_backbone_is_one(write_config):
    plain, synced = backbone_of(write_config()), backbone_of(write_config('sync_bn.py'))
    assert len(norms(synced)) == len(norms(plain)) > 20
    assert {type(norm) for norm in norms(plain)} == {nn.BatchNorm2d}
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms(synced))


def test_one_process_trains_as_with_plain_norms(write_config, randomize_norms):
    plain, synced = backbone_of(write_config()), backbone_of(write_config('sync_bn.py'))
    synced.load_state_dict(randomize_norms(plain).state_dict())
    x = torch.rand(2, 3, 64, 96)
    results = []
    for model in (plain, synced):
        outs = model.train()(x)
        torch.manual_seed(1)
        sum((out * torch.randn_like(out)).sum() for out in outs).backward()
        results.append([*outs, *(p.grad for p in model.parameters()), *model.buffers()])
    for value, want in zip(*results):
        torch.testing.assert_close(value, want)


def test_conversion_and_back(tiny_arch, randomize_norms):
    """What mmengine does for ``sync_bn = 'torch'``, and mmdet's init_detector does on the CPU."""
    model = randomize_norms(PartialNet(tiny_arch, out_indices=(0, 1, 2, 3))).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        names = list(model.state_dict())
        converted = convert_sync_batchnorm(model, 'torch')
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms(converted))
        assert list(converted.state_dict()) == names
        reverted = revert_sync_batchnorm(converted)
        assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms(reverted))
        for out, want in zip(reverted.eval()(x), expected):
            torch.testing.assert_close(out, want)
