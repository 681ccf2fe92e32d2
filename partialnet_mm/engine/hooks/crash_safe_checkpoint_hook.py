# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints that survive a crash at any moment, and an honest resume."""
import os
from collections import deque
from pathlib import Path

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...checkpoint.atomic import UNFINISHED, write_atomically
from ...checkpoint.files import POINTER, choose_checkpoint, position_in_name, verify_checkpoint
from ._random_state import get_random_state, set_random_state


@HOOKS.register_module()
class CrashSafeCheckpointHook(CheckpointHook):
    """mmengine's checkpoint hook, made to lose nothing.

    Saving: a checkpoint is written beside its place, flushed to the disk and
    renamed; then the pointer ``last_checkpoint`` moves, in the same way; only
    then the oldest checkpoint goes. mmengine deletes first and writes in
    place.

    Resuming: before mmengine reads the pointer, it is set to the newest
    checkpoint that loads whole (:func:`verify_checkpoint`); those skipped are
    logged with the reason. The checkpoints are looked for in the work
    directory of now, so it may have moved. If there are checkpoints and none
    can be used, training stops rather than start anew.

    Random numbers: the generators of every process are saved and put back,
    and validation does not use them up, so a training resumed at an epoch's
    end computes what it would have computed without the interruption. Beside
    it goes :class:`EpochDataHook`, which does the same for workers of the data
    loader.

    Args:
        interval: Epochs, or iterations, between checkpoints. Defaults to
            1.
        max_keep_ckpts: Checkpoints to keep; -1 for all. At least 2, so
            that one is left when the newest gets damaged on the disk.
            Defaults to 3.
        by_epoch, save_optimizer, save_param_scheduler, out_dir, save_last,
        save_best, rule, greater_keys, less_keys, filename_tmpl, backend_args,
        published_keys, save_begin: As in mmengine's CheckpointHook.

    Raises:
        ValueError: If ``max_keep_ckpts`` is 0 or 1.
    """

    def __init__(self,
                 interval: int = 1,
                 by_epoch: bool = True,
                 save_optimizer: bool = True,
                 save_param_scheduler: bool = True,
                 out_dir: str | Path | None = None,
                 max_keep_ckpts: int = 3,
                 save_last: bool = True,
                 save_best: str | list[str] | None = None,
                 rule: str | list[str] | None = None,
                 greater_keys: list[str] | None = None,
                 less_keys: list[str] | None = None,
                 filename_tmpl: str | None = None,
                 backend_args: dict | None = None,
                 published_keys: str | list[str] | None = None,
                 save_begin: int = 0) -> None:
        if 0 <= max_keep_ckpts < 2:
            raise ValueError('max_keep_ckpts must be at least 2, or -1 for all: with one, nothing is left if it gets '
                             f'damaged; got {max_keep_ckpts}')
        super().__init__(
            interval=interval, by_epoch=by_epoch, save_optimizer=save_optimizer,
            save_param_scheduler=save_param_scheduler, out_dir=out_dir, max_keep_ckpts=max_keep_ckpts,
            save_last=save_last, save_best=save_best, rule=rule, greater_keys=greater_keys, less_keys=less_keys,
            filename_tmpl=filename_tmpl, backend_args=backend_args, published_keys=published_keys,
            save_begin=save_begin)
        self._resumed_meta: dict = {}
        self._state_before_val: dict | None = None
        self._saved_iter: int | None = None
        self._sampler_seed: int | None = None

    # Resuming

    def before_run(self, runner: Runner) -> None:
        """Points mmengine's resume to the newest checkpoint that loads whole.

        Raises:
            ValueError: If the checkpoint that ``load_from`` names cannot be
                resumed from.
            RuntimeError: If none of the checkpoints in the work directory can.
        """
        folder = self._folder(runner)
        if isinstance(get_file_backend(folder, backend_args=self.backend_args), LocalBackend):
            self.backend_args = self.backend_args or dict(backend='atomic')
            if runner._resume:
                self._check_resume(runner, folder)

    def _check_resume(self, runner: Runner, folder: str) -> None:
        """The main process decides, all hear the outcome, so that none goes on alone."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        outcome: list[Exception | None] = [None]
        if is_main_process():
            try:
                if runner._load_from is None:
                    self._repair_pointer(runner, folder, model)
                elif os.path.exists(runner._load_from):
                    verify_checkpoint(runner._load_from, model)
            except ValueError as error:
                outcome = [ValueError(f'cannot resume from {runner._load_from!r}: {error}')]
            except RuntimeError as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if outcome[0] is not None:
            raise outcome[0]

    def _repair_pointer(self, runner: Runner, folder: str, model: object) -> None:
        choice = choose_checkpoint(folder, self.filename_tmpl, lambda path: verify_checkpoint(path, model))
        for path, reason in choice.skipped:
            runner.logger.warning(f'resume skips {path!r}: {reason}')
        pointer = os.path.join(runner.work_dir, POINTER)
        if choice.path is not None:
            runner.logger.info(f'resume takes {choice.path!r}, the newest checkpoint that loads whole')
            write_atomically(choice.path.encode(), pointer)
        elif choice.skipped:
            reasons = '\n'.join(f'- {path}: {reason}' for path, reason in choice.skipped)
            raise RuntimeError(f'none of the checkpoints in {folder!r} can be resumed from:\n{reasons}\n'
                               'To start anew, use another work directory or leave out --resume')
        else:
            runner.logger.info(f'nothing to resume in {folder!r} ({self.filename_tmpl}): training starts anew')
            if os.path.exists(pointer):
                os.remove(pointer)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the state of the random numbers until training starts."""
        if runner._resume:
            self._resumed_meta = checkpoint['meta']

    def before_train(self, runner: Runner) -> None:
        """Puts the random numbers back, after all that uses them up while training is set up."""
        self._rebase_best(runner)
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            self._remove_unfinished()
        self._restore_random_state(runner)
        self._sampler_seed = getattr(_sampler(runner), 'seed', None)

    def _restore_random_state(self, runner: Runner) -> None:
        states = self._resumed_meta.get('random_states')
        if states is None:
            return
        sampler = _sampler(runner)
        if hasattr(sampler, 'seed'):
            sampler.seed = self._resumed_meta['sampler_seed']
        if len(states) == runner.world_size:
            set_random_state(states[runner.rank])
        else:
            runner.logger.warning(
                f'the checkpoint is of {len(states)} processes and there are {runner.world_size} now: random numbers '
                'and the order of the data differ from those of an uninterrupted training')

    def before_val(self, runner: Runner) -> None:
        """Remembers the random numbers: a resumed training has no validation before its first epoch."""
        self._state_before_val = get_random_state()

    def after_val(self, runner: Runner) -> None:
        """Puts back the random numbers that validation used up."""
        if self._state_before_val is not None:
            set_random_state(self._state_before_val)
            self._state_before_val = None

    # Saving

    def save_now(self, runner: Runner) -> str:
        """Saves a checkpoint after the current iteration, called on all processes from ``after_train_iter``.

        Args:
            runner: The runner.

        Returns:
            str: Its path.
        """
        iterations = runner.iter + 1
        if self.by_epoch:
            self._save_checkpoint_with_step(
                runner, position_in_name(runner.epoch, iterations), dict(epoch=runner.epoch, iter=iterations))
        else:
            self._save_checkpoint(runner)
        return str(self.last_ckpt)

    def is_saved(self, runner: Runner) -> bool:
        """Whether a checkpoint of ``runner.iter`` iterations, all complete, was saved by this process."""
        return self._saved_iter == runner.iter

    def _save_checkpoint_with_step(self, runner: Runner, step: int | str, meta: dict) -> None:
        # Validation is under way when this is called for a best checkpoint.
        state = self._state_before_val or get_random_state()
        meta = dict(meta, random_states=all_gather_object(state), sampler_seed=self._sampler_seed)
        outdated: list[int | str] = []
        if self.max_keep_ckpts > 0:
            kept = [*self.keep_ckpt_ids] + [step] * (step not in self.keep_ckpt_ids)
            # The checkpoint names also what is about to go: mmengine removes it on resuming
            # if a crash prevents it here.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            outdated = kept[:-self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler,
            meta=meta, by_epoch=self.by_epoch, backend_args=self.backend_args)
        self._saved_iter = meta['iter']
        if not is_main_process():
            return
        pointer = os.path.join(runner.work_dir, POINTER)
        write_atomically(str(self.last_ckpt).encode(), pointer)
        for old in outdated:
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As mmengine's, which deletes the former best first; here it goes last."""
        if not self.save_best:
            return
        former = self._best_paths()
        self._set_best_paths(dict.fromkeys(former))
        super()._save_best_checkpoint(runner, metrics)
        current = self._best_paths()
        self._set_best_paths({key: path or former.get(key) for key, path in current.items()})
        if is_main_process():
            for key, path in former.items():
                if path and current.get(key) and path != current[key]:
                    self._remove(path)

    def _best_paths(self) -> dict[str, str | None]:
        if len(self.key_indicators) == 1:
            return dict(best_ckpt=self.best_ckpt_path)
        return dict(self.best_ckpt_path_dict)

    def _set_best_paths(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths['best_ckpt']
        else:
            self.best_ckpt_path_dict = paths

    def _rebase_best(self, runner: Runner) -> None:
        """Looks for best checkpoints in the work directory of now, if it has moved."""
        for key, path in list(runner.message_hub.runtime_info.items()):
            if key.startswith('best_ckpt') and path and not os.path.exists(path):
                runner.message_hub.update_info(key, os.path.join(self._folder(runner), os.path.basename(path)))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)  # sharded checkpoints are folders

    def _remove_unfinished(self) -> None:
        for name in os.listdir(self.out_dir) if os.path.isdir(self.out_dir) else ():
            if name.endswith(UNFINISHED):
                os.remove(os.path.join(self.out_dir, name))

    def _folder(self, runner: Runner) -> str:
        """Where checkpoints are, before ``before_train`` makes ``out_dir`` that folder."""
        if self.out_dir is None:
            return runner.work_dir
        return os.path.join(self.out_dir, os.path.basename(runner.work_dir.rstrip(os.sep)))


def _sampler(runner: Runner) -> object:
    """What draws the order of the training data; mmengine gives every loader a batch sampler around it."""
    return getattr(runner.train_loop.dataloader.batch_sampler, 'sampler', None)
