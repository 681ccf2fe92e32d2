# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints that survive a crash at any moment, and a resume that loses nothing."""
import os
import re
import uuid
from bisect import bisect
from collections import deque
from collections.abc import Callable
from itertools import count
from pathlib import Path

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn

from ...checkpoint.atomic import UNFINISHED, write_atomically
from ...checkpoint.errors import TRUST_HINT, CheckpointError, ResumeError
from ...checkpoint.files import (
    POINTER,
    choose_checkpoint,
    name_pattern,
    position_in_name,
    position_of,
    verify_checkpoint,
)
from ...checkpoint.loader import hand_over
from ._folder_lock import FolderLock
from ._random_state import check_random_state, get_random_state, set_random_state
from ._training_state import plain_checkpoint, restore_hub, restore_schedulers

#: Names the training and the iteration whose validation is complete.
VALIDATED = 'last_validation'


@HOOKS.register_module()
class CrashSafeCheckpointHook(CheckpointHook):
    """mmengine's checkpoint hook, made to lose nothing.

    Saving: a checkpoint is written to a temporary file beside it, flushed to
    the disk and renamed. Then the pointer ``last_checkpoint`` moves in the same
    way, and only then the oldest checkpoint is deleted. mmengine deletes first
    and writes in place. Only files with the names that this hook gives, in its
    own folder, are ever deleted. Checkpoints hold tensors and plain data, so
    that a strict reader accepts them.

    Resuming: before mmengine reads the pointer, it is set to the newest
    checkpoint of the same training that loads whole
    (:func:`verify_checkpoint`). The log names those that are passed over, with
    the reason. The checkpoints are looked for in the current work directory, so
    it may have moved. If there are checkpoints and none can be used, training
    stops and does not start anew.

    One training per work directory: a second one is refused at its start.

    Random numbers: the generators of every process are saved and restored, and
    validation does not use them up. So are the gradients of an unfinished
    accumulation. A resumed training computes what it would have computed
    without the interruption. :class:`EpochDataHook` does the same for the data,
    and :class:`PreemptionHook` repeats a validation that was interrupted.

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
        #: Whether a checkpoint to resume from may carry code: ``--trust-checkpoint``.
        self.trust_checkpoint = False
        self._locks: list[FolderLock] = []
        self._resumed: dict = {}
        self._trains = False
        self._forks = False
        self._run: dict = dict(run=uuid.uuid4().hex, forked_from=[])
        self._state_before_val: dict | None = None
        self._gradients: list[dict] = []
        self._saved_iter: int | None = None
        self._sampler_seed: int | None = None
        self._warned: set[str] = set()

    # Resuming

    def before_run(self, runner: Runner) -> None:
        """Locks the folders, and points mmengine's resume to the newest checkpoint that loads whole.

        Raises:
            ResumeError: If the checkpoint that ``load_from`` names, or none in
                the work directory, can be resumed from, or another training
                uses this directory.
        """
        self._trains = isinstance(runner._train_loop, BaseLoop)  # for a validation or a test it is not built
        folder = self._folder(runner)
        if not self._trains or not isinstance(get_file_backend(folder, backend_args=self.backend_args), LocalBackend):
            return
        self.backend_args = self.backend_args or dict(backend='atomic')
        self._forks = runner._resume and runner._load_from is not None
        # The main process decides, and all learn the outcome, so that none goes on alone.
        outcome: list[Exception | None] = [None]
        if is_main_process():
            try:
                self._lock(runner, folder)
                if runner._resume:
                    self._check_resume(runner, folder)
            except (ValueError, RuntimeError, OSError) as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if outcome[0] is not None:
            self.release()
            raise outcome[0]

    def _lock(self, runner: Runner, folder: str) -> None:
        self.release()
        for path in dict.fromkeys(os.path.realpath(path) for path in (runner.work_dir, folder)):
            os.makedirs(path, exist_ok=True)
            self._locks.append(FolderLock(path, runner.logger.info))

    def release(self) -> None:
        """Lets other trainings use the folders."""
        while self._locks:
            self._locks.pop().release()

    def _check_resume(self, runner: Runner, folder: str) -> None:
        def verify(path: str) -> dict:
            try:
                return self._verify(runner, path)
            except ValueError:
                raise
            except Exception as error:  # whatever a damaged file causes is a reason not to use it
                raise ValueError(f'it is damaged ({type(error).__name__}: {error})') from error

        if runner._load_from is None:
            self._repair_pointer(runner, folder, verify)
        elif os.path.lexists(runner._load_from):
            try:
                hand_over(runner._load_from, verify(runner._load_from))
            except ValueError as error:
                hint = f'\n{TRUST_HINT}' if isinstance(error.__cause__, CheckpointError) else ''
                raise ResumeError(f'cannot resume from {runner._load_from!r}: {error}{hint}') from error

    def _verify(self, runner: Runner, path: str) -> dict:
        """Returns the content of a checkpoint that this training can resume; raises otherwise."""
        checkpoint = verify_checkpoint(path, _unwrapped(runner.model), self.trust_checkpoint)
        meta = checkpoint['meta']
        restore_hub(checkpoint['message_hub'])
        if runner.param_schedulers is not None and 'param_schedulers' in checkpoint:
            restore_schedulers(checkpoint['param_schedulers'], runner.param_schedulers)
        for state in meta.get('random_states', ()):
            check_random_state(state)
        data = meta.get('data', {})
        numbers = [*(data[key] for key in ('images', 'step', 'length', 'of') if data), meta.get('seed') or 0,
                   meta.get('sampler_seed') or 0]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError('its meta is damaged: a position or a seed is no number')
        _check_fit(runner, checkpoint)
        return checkpoint

    def _repair_pointer(self, runner: Runner, folder: str, verify: Callable[[str], dict]) -> None:
        pointer = os.path.join(runner.work_dir, POINTER)
        _make_room(runner, pointer)
        named = None
        if os.path.isfile(pointer):
            with open(pointer, 'rb') as file:
                named = file.read(4096).decode(errors='replace').strip()
        choice = choose_checkpoint(folder, self.filename_tmpl, verify, named)
        for path, reason in choice.skipped:
            runner.logger.warning(f'resume skips {path!r}: {reason}')
        for path in choice.left:
            runner.logger.warning(f'resume leaves {path!r}: it is of another training than the one that {POINTER} '
                                  'names; --resume FILE resumes it')
        if choice.path is not None:
            runner.logger.info(f'resume takes {choice.path!r}, the newest checkpoint that loads whole')
            write_atomically(choice.path.encode(), pointer)
            hand_over(choice.path, choice.content)
            self._forks = bool(choice.skipped or choice.left)
            return
        if choice.skipped or choice.left:
            reasons = [f'- {path}: {reason}' for path, reason in choice.skipped]
            reasons += [f'- {path}: it is of another training' for path in choice.left]
            raise ResumeError(f'none of the checkpoints in {folder!r} can be resumed from:\n' + '\n'.join(reasons) +
                              '\nTo start anew, use another work directory or leave out --resume')
        runner.logger.info(f'nothing to resume in {folder!r} ({self.filename_tmpl}): training starts anew')
        if os.path.lexists(pointer):
            os.remove(pointer)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Rebuilds what a checkpoint holds as plain data, and keeps the random numbers until training starts."""
        if not runner._resume:
            return
        meta = checkpoint['meta']
        meta.pop('config', None)  # mmengine would run it as Python; what it writes itself is called cfg
        checkpoint['message_hub'] = restore_hub(checkpoint['message_hub'])
        if self._trains and runner.param_schedulers is not None and 'param_schedulers' in checkpoint:
            checkpoint['param_schedulers'] = restore_schedulers(checkpoint['param_schedulers'], runner.param_schedulers)
        self._resumed = dict(meta, gradients=checkpoint.get('gradients'))
        if self._forks:
            self._run['forked_from'] = [*meta.get('forked_from', []), [meta.get('run'), meta['iter']]]
        else:
            self._run = dict(run=meta.get('run'), forked_from=meta.get('forked_from', []))
        self._saved_iter = meta['iter']

    def before_train(self, runner: Runner) -> None:
        """Restores the random numbers, after all that uses them up while training is set up."""
        outdated = self._own_names(runner)
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            for name in outdated:
                self._remove(self.file_backend.join_path(self.out_dir, name))
            self._remove_unfinished()
        self._restore_state(runner)
        self._sampler_seed = getattr(_sampler(runner), 'seed', None)

    def _own_names(self, runner: Runner) -> list[str]:
        """Ties the names in a resumed checkpoint to this folder; returns those of checkpoints that are to be deleted.

        mmengine would delete whatever files they name.
        """
        hub = runner.message_hub
        for key, path in list(hub.runtime_info.items()):
            if key.startswith('best_ckpt'):
                name = os.path.basename(str(path))
                hub.update_info(key, os.path.join(self._folder(runner), name) if self._is_best(name) else None)
        last = os.path.join(self._folder(runner), os.path.basename(str(hub.runtime_info.get('last_ckpt'))))
        if os.path.isfile(last):
            self.last_ckpt = last  # a best checkpoint of a repeated validation is entered there
        kept = hub.runtime_info.get('keep_ckpt_ids')
        if self.max_keep_ckpts <= 0 or not isinstance(kept, (list, tuple)):
            kept = []
        names = {step: self.filename_tmpl.format(step) for step in kept if isinstance(step, (int, str))}
        kept = [step for step, name in names.items() if position_of(name, self.filename_tmpl)]
        if 'keep_ckpt_ids' in hub.runtime_info:
            hub.update_info('keep_ckpt_ids', kept[-self.max_keep_ckpts:])
        return [names[step] for step in kept[:-self.max_keep_ckpts]] if kept else []

    def _restore_state(self, runner: Runner) -> None:
        states = self._resumed.get('random_states')
        if states is None:
            return
        sampler = _sampler(runner)
        if hasattr(sampler, 'seed'):
            sampler.seed = self._resumed.get('sampler_seed') or sampler.seed
        if len(states) != runner.world_size:
            runner.logger.warning(
                f'the checkpoint is of {len(states)} processes and there are {runner.world_size} now: random numbers '
                'differ from those of an uninterrupted training')
            return
        set_random_state(states[runner.rank])
        gradients = self._resumed['gradients']
        if gradients:
            for name, parameter in _unwrapped(runner.model).named_parameters():
                if name in gradients[runner.rank]:
                    parameter.grad = gradients[runner.rank][name].to(parameter)
            runner.logger.info('the gradients of the unfinished accumulation are restored')

    def repeat_validation(self, runner: Runner) -> None:
        """Validates first if the resumed checkpoint is one whose validation is due and was interrupted."""
        if not self._resumed or not _validation_is_due(runner):
            return
        due = [False]
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            path = Path(self.out_dir, VALIDATED)
            run, _, iterations = (path.read_text(errors='replace') if path.is_file() else '').partition(' ')
            due = [run != str(self._run['run']) or not iterations.isdigit() or int(iterations) < runner.iter]
        broadcast_object_list(due)
        if due[0]:
            runner.logger.info(f'the validation after iteration {runner.iter} was interrupted, and is repeated')
            runner.val_loop.run()

    def before_val(self, runner: Runner) -> None:
        """Remembers the random numbers, so that they do not depend on whether there is a validation."""
        self._state_before_val = get_random_state()

    def after_val(self, runner: Runner) -> None:
        """Restores the random numbers that validation used up."""
        if self._state_before_val is None:
            return
        set_random_state(self._state_before_val)
        self._state_before_val = None
        if self._trains and self.is_saved(runner) and is_main_process() and isinstance(self.file_backend, LocalBackend):
            write_atomically(f'{self._run["run"]} {runner.iter}'.encode(), os.path.join(self.out_dir, VALIDATED))

    def after_run(self, runner: Runner) -> None:
        """The folders are free again."""
        self.release()

    # Saving

    def save_now(self, runner: Runner) -> str:
        """Saves a checkpoint after the current iteration, called on all processes from ``after_train_iter``.

        Returns:
            Its path.
        """
        iterations = runner.iter + 1
        if self.by_epoch:
            self._save_checkpoint_with_step(
                runner, position_in_name(runner.epoch, iterations), dict(epoch=runner.epoch, iter=iterations))
        else:
            self._save_checkpoint(runner)
        return str(self.last_ckpt)

    def is_saved(self, runner: Runner) -> bool:
        """Whether there is a checkpoint of ``runner.iter`` iterations, all complete."""
        return self._saved_iter == runner.iter

    def _save_checkpoint_with_step(self, runner: Runner, step: int | str, meta: dict) -> None:
        # Validation is under way when this is called for a best checkpoint.
        state = self._state_before_val or get_random_state()
        # Gradients that are left after an iteration are those of an unfinished accumulation.
        gradients = {name: parameter.grad.cpu() for name, parameter in _unwrapped(runner.model).named_parameters()
                     if parameter.grad is not None}
        states, self._gradients = zip(*all_gather_object((state, gradients)))
        meta = dict(meta, **self._run, random_states=list(states), sampler_seed=self._sampler_seed)
        outdated: list[int | str] = []
        if self.max_keep_ckpts > 0:
            kept = [*self.keep_ckpt_ids] + [step] * (step not in self.keep_ckpt_ids)
            # The checkpoint names also what is about to go: it is deleted on resuming if a crash prevents it here.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            outdated = kept[:-self.max_keep_ckpts]
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            _make_room(runner, self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler,
            meta=meta, by_epoch=self.by_epoch, backend_args=self.backend_args)
        self._gradients = []
        self._saved_iter = meta['iter']
        if is_main_process():
            pointer = os.path.join(runner.work_dir, POINTER)
            _make_room(runner, pointer)
            write_atomically(str(self.last_ckpt).encode(), pointer)
            for old in outdated:
                self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Turns the checkpoint into plain data."""
        if any(self._gradients):
            checkpoint['gradients'] = list(self._gradients)
        plain = plain_checkpoint(checkpoint, lambda name, reason: self._warn(
            runner, f'checkpoints do not hold {name}: {reason}'))
        checkpoint.clear()
        checkpoint.update(plain)

    def _warn(self, runner: Runner, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            runner.logger.warning(message)

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

    # Files

    def _is_best(self, name: str) -> bool:
        """Whether a file name is one that this hook gives to a best checkpoint."""
        keys = '|'.join('.+' if key == 'auto' else re.escape(key.replace('/', '_')) for key in self.save_best or ())
        return bool(keys and re.fullmatch(f'best_(?:{keys})_{name_pattern(self.filename_tmpl)}', name))

    def _remove(self, path: str) -> None:
        """Deletes a file of this hook's own folder with a name that this hook gives, and nothing else."""
        name = os.path.basename(path)
        own = path == self.file_backend.join_path(self.out_dir, name) and (
            position_of(name, self.filename_tmpl) or self._is_best(name))
        if own and self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _remove_unfinished(self) -> None:
        for name in os.listdir(self.out_dir) if os.path.isdir(self.out_dir) else ():
            whole = name.removesuffix(UNFINISHED)
            if whole != name and (position_of(whole, self.filename_tmpl) or self._is_best(whole)):
                os.remove(os.path.join(self.out_dir, name))

    def _folder(self, runner: Runner) -> str:
        """The folder of checkpoints, before ``before_train`` makes ``out_dir`` that folder."""
        if self.out_dir is None:
            return runner.work_dir
        return os.path.join(self.out_dir, os.path.basename(runner.work_dir.rstrip(os.sep)))


def _make_room(runner: Runner, path: str) -> None:
    """Renames a folder that has the name of a file to be written."""
    if os.path.isdir(path) and not os.path.islink(path):
        free = next(name for name in (f'{path}.folder{number}' for number in count()) if not os.path.lexists(name))
        os.rename(path, free)
        runner.logger.warning(f'{path!r} is a folder in the way of a file; it is called {free!r} now')


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _check_fit(runner: Runner, checkpoint: dict) -> None:
    """Raises a ValueError if the optimizer or the gradients of a checkpoint belong to another config."""
    own = runner.optim_wrapper.state_dict()
    if 'param_groups' in own:
        sizes, given = ([len(group['params']) for group in state['param_groups']]
                        for state in (own, checkpoint['optimizer']))
        if sizes != given:
            raise ValueError('its optimizer belongs to another config, which groups the parameters differently')
    shapes = {name: parameter.shape for name, parameter in _unwrapped(runner.model).named_parameters()}
    for gradients in checkpoint.get('gradients') or ():
        if any(gradient.shape != shapes.get(name) for name, gradient in gradients.items()):
            raise ValueError('its gradients are damaged')


def _sampler(runner: Runner) -> object:
    """What draws the order of the training data; mmengine gives every loader a batch sampler around it."""
    return getattr(runner.train_loop.dataloader.batch_sampler, 'sampler', None)


def _validation_is_due(runner: Runner) -> bool:
    """Whether the loop validates at the position of a resumed training, before it trains on."""
    loop = runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if runner.val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    if by_epoch and loop.iter != loop.epoch * (loop.max_iters // max(1, loop.max_epochs)):
        return False  # in the middle of an epoch
    done, total = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, done + 1) - 1]
    return done > 0 and done >= loop.val_begin and (done % interval == 0 or done == total)
