# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A training that gets a signal to leave saves first."""
import os
import signal
import threading
from types import FrameType

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .crash_safe_checkpoint_hook import CrashSafeCheckpointHook

#: Exit status of a training that a signal has ended and that has saved: start it again with --resume.
#: It is sysexits.h's EX_TEMPFAIL.
EXIT_PREEMPTED = 75


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM or SIGUSR1, saves after the current iteration and exits with status 75.

    All processes agree at the end of each iteration, so it is enough if one
    gets the signal. They leave after the same iteration, when the checkpoint is
    complete; meanwhile Ctrl-C is ignored. In validation a process leaves after
    the current batch if the epoch is saved, otherwise after the validation. A
    resumed training repeats the validation that it left.

    The end of torchrun counts as a signal: its processes save and leave. One
    that cannot do so in half a minute is killed.

    It needs :class:`CrashSafeCheckpointHook`, which saves, and, to go on from
    the middle of an epoch, :class:`EpochDataHook`.
    """

    # After checkpoints (VERY_LOW).
    priority = 'LOWEST'
    signals = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._received: int | None = None
        self._process = os.getpid()
        self._former: dict[int, object] = {}
        self._group: dist.ProcessGroup | None = None
        self._trained = threading.Event()
        self._parent = os.getppid()

    def before_train(self, runner: Runner) -> None:
        """Listens to the signals, and repeats a validation that was interrupted.

        Raises:
            ValueError: If no CrashSafeCheckpointHook is there to save.
        """
        checkpoints = self._checkpoints(runner)
        if runner.distributed:
            # Messages between CPUs, so that asking at each iteration does not wait for the GPU.
            self._group = dist.new_group(backend='gloo')
        self._process = os.getpid()
        self._former = {number: signal.signal(number, self._receive) for number in self.signals}
        self._former[signal.SIGINT] = signal.getsignal(signal.SIGINT) or signal.SIG_DFL
        if dist.is_torchelastic_launched():
            threading.Thread(target=self._watch_parent, daemon=True).start()
        checkpoints.repeat_validation(runner)

    def after_train(self, runner: Runner) -> None:
        """Listens no longer."""
        self._trained.set()
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._end_group()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None,
                         outputs: dict | None = None) -> None:
        """Saves and leaves if any process has a signal."""
        if self._any_received():
            self._checkpoints(runner).save_now(runner)
            if self._group is not None:
                # torchrun ends all processes when the first has left, also one that still writes.
                dist.barrier(group=self._group)
            self._leave(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: object = None,
                       outputs: object = None) -> None:
        """Leaves in a validation if the epoch before it is saved."""
        # Processes may have different numbers of batches here, so each goes by its own signal.
        if self._received is not None and self._checkpoints(runner).is_saved(runner):
            self._leave(runner, runner.iter)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # Workers of the data loader inherit this handler: they must serve until the iteration's end.
        if os.getpid() == self._process:
            self._received = number
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _watch_parent(self) -> None:
        # Nobody else ends the processes of a torchrun that was killed.
        while os.getppid() == self._parent:
            if self._trained.wait(2):
                return
        os.kill(self._process, signal.SIGTERM)
        if not self._trained.wait(30):
            os.kill(self._process, signal.SIGKILL)

    def _any_received(self) -> bool:
        received = self._received is not None
        if self._group is None:
            return received
        flag = torch.tensor([int(received)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag.item())

    def _end_group(self) -> None:
        # Left to the interpreter's exit, its threads may abort the process.
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _leave(self, runner: Runner, iterations: int) -> None:
        self._end_group()
        self._checkpoints(runner).release()
        name = signal.Signals(self._received).name if self._received else 'a signal to another process'
        runner.logger.info(f'{name}: leaving with status {EXIT_PREEMPTED} after iteration {iterations}; '
                           'the same command with --resume goes on from there')
        raise SystemExit(EXIT_PREEMPTED)

    @staticmethod
    def _checkpoints(runner: Runner) -> CrashSafeCheckpointHook:
        for hook in runner.hooks:
            if isinstance(hook, CrashSafeCheckpointHook):
                return hook
        raise ValueError("PreemptionHook needs default_hooks.checkpoint = dict(type='CrashSafeCheckpointHook'), "
                         f'got {[type(hook).__name__ for hook in runner.hooks]}')

