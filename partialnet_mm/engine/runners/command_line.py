# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""From a command line to a config, and from a config to an mmengine runner: all tools start here."""
import argparse
import atexit
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...checkpoint import CheckpointError, MissingCheckpointError, read_checkpoint, register_loader
from ...checkpoint.errors import TRUST_HINT
from ...checkpoint.layouts import foreign_layout, refuse_other_network, with_own_names
from ...checkpoint.loader import hand_over
from ...checkpoint.pretrained import content_for, find_state_dict
from ...config_types import type_name
from ...models import PartialNet, require_patconv
from ...preflight import check_config, errors_in, format_findings, leaf_datasets
from ..hooks import CrashSafeCheckpointHook
from .config_file import ConfigError, describe, read_config
from .missing import require_checkpoints, require_data
from .own_data import apply_own_data_settings
from .user_errors import WRONG_USAGE, is_first_process
from .values import parse_value

#: Environment variable that tools/env/launch.py sets after it has checked config, checkpoints and data.
CHECKED = 'PARTIALNET_CHECKED'


class KeyValues(argparse.Action):
    """``--cfg-options``: values by dotted keys, read by :func:`parse_value`; a wrong one is a usage error."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Sequence[str],
                 option_string: str | None = None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for given in values:
            key, equals, value = given.partition('=')
            if not equals or not all(key.split('.')):
                parser.error(f'{option_string}: {given!r} is not KEY=VALUE, with names joined by dots as its key')
            try:
                options[key] = parse_value(value)
            except ValueError as error:
                parser.error(f'{option_string} {given}: {error}')
        setattr(namespace, self.dest, options)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that :func:`load_config` reads."""
    parser.add_argument('config', help='config file')
    parser.add_argument('--cfg-options', nargs='+', action=KeyValues, metavar='KEY=VALUE',
                        help='changes to the config, e.g. optim_wrapper.optimizer.lr=1e-4 classes="[\'a\',\'b\']"')


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust-checkpoint``."""
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='load a checkpoint that holds more than data, or one from an address: it can run any code')


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that :func:`load_runner_config` reads, ``--trust-checkpoint`` and ``--skip-preflight``."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    add_trust_argument(parser)
    parser.add_argument('--skip-preflight', action='store_true', help='do not check the data first')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='what started the processes; dist_train.sh passes pytorch')
    # torch.distributed.launch passes it; torchrun sets the variable itself.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(parser: argparse.ArgumentParser, args: argparse.Namespace, splits: Sequence[str] = ()) -> Config:
    """Reads a config with the changes of the command line and the settings of an own-data config.

    From here on, mmengine reads checkpoints by :func:`read_checkpoint`. ``args`` has ``config`` and ``cfg_options``.
    The data of ``splits`` must exist if the config is an own-data config; if 'train' is one of them, so must the
    checkpoints that the config names. Options that the config does not have are named on stderr.

    Raises:
        ConfigError: If the config, an option, or the data of an own-data config is wrong.
        MissingCheckpointError: If a checkpoint of a training does not exist.
    """
    register_loader(getattr(args, 'trust_checkpoint', False))
    first = not is_checked() and is_first_process()

    def warn(sentence: str) -> None:
        if first:
            sys.stderr.write(f'{parser.prog}: warning: {sentence}\n')

    cfg = read_config(args.config, args.cfg_options, warn)
    if 'train' in splits and not is_checked():
        require_checkpoints(cfg)
    try:
        return apply_own_data_settings(cfg, splits)
    except (OSError, ValueError) as error:
        raise ConfigError(f'config {args.config!r}: {error}{_split_of(str(error), cfg, splits)}') from error
    except (AttributeError, KeyError, TypeError) as error:  # a value of another shape than the settings go into
        raise ConfigError(f'config {args.config!r}: {describe(error)}') from error


def _split_of(message: str, cfg: Config, splits: Sequence[str]) -> str:
    """Whose file an error is about, and what a config without it has, if it is none of the training's."""
    files = {split: [dataset.get('ann_file') for dataset in leaf_datasets(cfg[f'{split}_dataloader'].dataset)]
             for split in splits if cfg.get(f'{split}_dataloader')}
    for split, names in files.items():
        if any(name and str(name) in message for name in names):
            off = ' '.join(f'{split}_{part}=None' for part in ('cfg', 'dataloader', 'evaluator'))
            return f'; it is of {split}_dataloader' + (f'. Without one: --cfg-options {off}' if split == 'val' else '')
    return ''


def load_runner_config(parser: argparse.ArgumentParser, args: argparse.Namespace, splits: Sequence[str],
                       starts_here: bool = True) -> Config:
    """Reads a config by :func:`load_config` and sets launcher and work folder.

    slurm and mpi need GPUs where ``starts_here``, on the machines that the processes start on.
    """
    if starts_here and args.launcher in ('slurm', 'mpi') and not torch.cuda.is_available():
        parser.error(f'--launcher {args.launcher} needs GPUs, and torch sees none; without them, dist_train.sh and '
                     'dist_test.sh start processes on the CPU')
    cfg = load_config(parser, args, splits)
    if args.launcher != 'slurm':
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    return cfg


def is_checked() -> bool:
    """Whether tools/env/launch.py has checked config, checkpoints and data before it has started this process."""
    return bool(os.environ.get(CHECKED))


def check_data(parser: argparse.ArgumentParser, cfg: Config, splits: Sequence[str]) -> None:
    """Ends the process with the findings if the data of the config has errors; one process of the job checks."""
    if is_checked():
        return
    try:
        require_data(cfg, splits)
    except ConfigError as error:
        raise ConfigError(f'{error}. --skip-preflight starts without this check') from None
    if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', os.environ.get('NODE_RANK') or '0'))) > 0:
        return
    findings = check_config(cfg, splits=splits)
    if errors_in(findings):
        roots = ' '.join(f'{split}_dataloader.dataset.data_root=FOLDER' for split in splits)
        parser.exit(WRONG_USAGE, f'{format_findings(findings)}\nNothing was started. If the data is elsewhere: '
                    f'--cfg-options {roots}, or as the config says. --skip-preflight starts without this check.\n')


def refuse_address(checkpoint: str) -> None:
    """Raises a ValueError for a checkpoint that is not a file."""
    if '://' in checkpoint:
        raise CheckpointError(f'checkpoint {checkpoint!r} is an address: download it and name the file, or allow it '
                              'with --trust-checkpoint')


def read_trusted(checkpoint: str, model: dict) -> dict:
    """Reads a checkpoint as data, and hands it to mmengine, which asks for it later and does not open it again.

    One of other code (:func:`content_for`) gets the names of the model that this config builds.

    Raises:
        ValueError: If it is an address, damaged, or holds more than data.
        FileNotFoundError: If it does not exist.
    """
    refuse_address(checkpoint)
    try:
        content = read_checkpoint(checkpoint)
    except MissingCheckpointError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f'{error}\n{TRUST_HINT}') from error
    content = content_for(model, content, checkpoint)
    hand_over(checkpoint, content)
    return content


def build_runner(cfg: Config, least_fit: float, trust_checkpoint: bool = False) -> Runner:
    """Builds the runner, on GPUs or, where there are none, on CPUs.

    Without a GPU, processes communicate by gloo, and a config's mixed
    precision, which mmengine offers on accelerators only, becomes float32 with
    a warning.

    Args:
        cfg: The whole config.
        least_fit: Fraction of the model's tensors that ``load_from`` must
            hold, in their shapes. On resuming, CrashSafeCheckpointHook checks
            more.
        trust_checkpoint: Whether checkpoints may carry code, and
            ``load_from`` may be of another network. Defaults to False.

    Raises:
        ValueError: If ``load_from`` is not known to be data only, or belongs
            to another network, and ``trust_checkpoint`` is not set; or if a
            ``conv_cfg`` of type 'PATConv' has replaced no layer.
    """
    content = None
    if cfg.get('load_from') and not trust_checkpoint:
        refuse_address(cfg.load_from)
        if not cfg.get('resume'):  # what a training resumes from is read by the checkpoint hook
            content = read_trusted(cfg.load_from, cfg.model)
    if not torch.cuda.is_available():
        train_in_float32(cfg)
        if cfg.launcher == 'pytorch':
            # mmengine's own set-up would look for a GPU for each process.
            torch.distributed.init_process_group('gloo')
            # Left to the interpreter's exit, gloo's threads may abort the process.
            atexit.register(torch.distributed.destroy_process_group)
            cfg.model_wrapper_cfg = dict(
                dict(type='MMDistributedDataParallel', broadcast_buffers=False,
                     find_unused_parameters=cfg.get('find_unused_parameters', False), device_ids=None),
                **(cfg.get('model_wrapper_cfg') or {}))
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    require_patconv(runner.model, cfg.model)
    for hook in runner.hooks:
        if isinstance(hook, CrashSafeCheckpointHook):
            hook.trust_checkpoint = trust_checkpoint
    if content is not None:
        require_fit(runner.model, content, cfg.load_from, least_fit)
    return runner


def train_in_float32(cfg: Config) -> None:
    """Takes mixed precision out of a config, with a warning."""
    if type_name((cfg.get('optim_wrapper') or {}).get('type')) == 'AmpOptimWrapper':
        for option in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(option, None)
        cfg.optim_wrapper.type = 'OptimWrapper'
        print_log('no GPU: training in float32, not in the mixed precision that the config asks for',
                  logger='current', level=logging.WARNING)


def leave() -> None:
    """Ends a process that has done its work; call it last.

    Processes that used gloo end at once, after all exit handlers: during the interpreter's own exit gloo's threads
    sometimes abort them, and torchrun would report a failure.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == 'gloo':
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def require_fit(model: nn.Module, content: dict, checkpoint: str, least: float) -> None:
    """Raises for a checkpoint of another network, which mmengine loads with no more than a warning.

    Args:
        model: What the checkpoint is for.
        content: What the checkpoint holds.
        checkpoint: How the message calls it.
        least: Part of the model's tensors that must be there, in their shapes.

    Raises:
        ValueError: If fewer are.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    given = {name.removeprefix('module.'): value for name, value in find_state_dict(content, checkpoint).items()
             if isinstance(value, Tensor)}
    backbone = getattr(model, 'backbone', None)
    renamed = with_own_names(given, backbone.mixer_residual) if isinstance(backbone, PartialNet) else None
    if renamed is not None:
        network = {name.removeprefix('backbone.'): value for name, value in renamed.items()}
        refuse_other_network(backbone.state_dict(), network, foreign_layout(given),
                             backbone.mixer_residual is not None, f'checkpoint {checkpoint!r}')
        given = renamed
    own = model.state_dict()
    wrong = [f'{name} is missing' for name in own if name not in given]
    wrong += [f'{name} is {tuple(given[name].shape)}, not {tuple(value.shape)}' for name, value in own.items()
              if name in given and given[name].shape != value.shape]
    if len(own) - len(wrong) < least * len(own):
        raise CheckpointError(f'checkpoint {checkpoint!r} belongs to another network or other classes: it fits '
                         f'{len(own) - len(wrong)} of {len(own)} tensors of the {type(model).__name__} of this config, '
                         f'at least {least:.0%} must fit. First that do not: {"; ".join(wrong[:5])}')
