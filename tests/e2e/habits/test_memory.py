# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What with_cp saves."""
import torch
from mmengine.config import Config

from partialnet_mm.analysis.measure import kept_memory
from tests.helpers.libraries import build_model


def test_a_detectors_backbone_keeps_far_less(write_config):
    plain, saving = (build_model(Config.fromfile(path)).backbone.train()
                     for path in (write_config(), write_config('checkpointing.py')))
    x = torch.randn(2, 3, 64, 64)
    kept, less = kept_memory(plain, x), kept_memory(saving, x)
    assert kept_memory(plain, x) == kept
    # in each stage: what its merging's norm gets, what each block gets, and what comes out, of float32; beside the
    # batch statistics of two norms
    maps = [2 * width * (16 >> i)**2 for i, width in enumerate(plain.channels)]
    assert less == sum(4 * (depth + 2) * size for depth, size in zip(plain.depths, maps)) + 16 * sum(plain.channels)
    assert 3 * less < kept
    # evaluation does not compute twice, and keeps all
    assert kept_memory(saving.eval(), x) == kept_memory(plain.eval(), x)
