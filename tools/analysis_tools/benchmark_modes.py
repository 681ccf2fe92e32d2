# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The ways in which a network is run: memory formats, and PyTorch's compiler."""
import copy
import os
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

AMP = {'bf16': torch.bfloat16, 'fp16': torch.float16}


class Mode(NamedTuple):
    """A way to run a network."""

    memory_format: torch.memory_format
    compiled: bool


MODES = {
    'eager': Mode(torch.contiguous_format, False),
    'channels_last': Mode(torch.channels_last, False),
    'compile': Mode(torch.contiguous_format, True),
    'compile_channels_last': Mode(torch.channels_last, True),
}


def check_modes(modes: list[str], device: str) -> None:
    """Raises a ValueError where the compiler that a mode needs is missing."""
    compiler = os.environ.get('CXX', 'g++')
    if device == 'cpu' and any(MODES[mode].compiled for mode in modes) and not shutil.which(compiler):
        raise ValueError(f'torch.compile needs the C++ compiler {compiler!r}, which is not on the PATH')


def check_amp(amp: str | None, device: str) -> None:
    """Raises a ValueError where PyTorch does not autocast to that type on that device."""
    if amp is None:
        return
    image, conv = torch.zeros(1, 1, 4, 4, device=device), nn.Conv2d(1, 1, 3).to(device)
    reason = 'it computes in another type'
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.autocast(device, AMP[amp]):
            warnings.simplefilter('ignore')  # some versions warn and compute in float32, others raise
            if conv(image).dtype == AMP[amp]:
                return
    except RuntimeError as error:
        reason = str(error)
    raise ValueError(f'torch {torch.__version__} has no autocast to {amp} on {device}: {reason}')


def prepare(model: nn.Module, images: Tensor, mode: str, amp: str | None) -> Callable[[], Tensor]:
    """A function that runs a network once in a mode; its first run, which compiles, is done.

    Args:
        model: In evaluation mode; stays as it is.
        images: (B, 3, H, W), on the device of the model.
        mode: One of MODES.
        amp: 'bf16' or 'fp16' for autocast.
    """
    memory_format, compiled = MODES[mode]
    if memory_format != torch.contiguous_format:
        model = copy.deepcopy(model).to(memory_format=memory_format)
    images = images.contiguous(memory_format=memory_format)
    run = torch.compile(model, fullgraph=True) if compiled else model

    def forward() -> Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, AMP.get(amp), enabled=amp is not None):
            return run(images)

    with ExitStack() as stack:
        if compiled:
            import torch._inductor.config as inductor_config
            from torch._dynamo import config as dynamo_config

            # Weights become constants that the compiler lays out and folds. Networks of one class share its code,
            # which is compiled for eight of them at most where nothing else is said.
            stack.enter_context(inductor_config.patch(freezing=True))
            stack.enter_context(dynamo_config.patch(cache_size_limit=1024))
        forward()
    return forward


def passes_in(forward: Callable[[], Tensor], seconds: float) -> int:
    """How many passes take so many seconds, at least one."""
    forward()
    _wait()
    start = time.perf_counter()
    forward()
    _wait()
    return max(1, round(seconds / (time.perf_counter() - start)))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
