# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a config needs and this machine lacks, found without reading any of it: checkpoints, data, GPUs."""
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config

from ...checkpoint import MissingCheckpointError
from ...checkpoint.errors import PRETRAINING_HINT
from ...config_types import type_name
from ...preflight import leaf_datasets
from .config_file import ConfigError

#: Data sets whose ``data_prefix`` names folders; others may complete it to the names of files.
FOLDERS_OF = ('CocoDataset', 'ImageNet', 'CustomDataset', 'BaseSegDataset', 'ADE20KDataset', 'CityscapesDataset')


def require_checkpoints(cfg: Config) -> None:
    """Raises a MissingCheckpointError for a file that ``load_from``, or an ``init_cfg`` of any module, names."""
    own_data = cfg.get('checkpoint') if cfg.get('own_data') else None
    for key, file in [('load_from', cfg.get('load_from')), ('checkpoint', own_data), *_pretrained(cfg.model, 'model')]:
        if isinstance(file, str) and '://' not in file and not os.path.exists(os.path.expanduser(file)):
            advice = {'load_from': '', 'checkpoint': ', or leave it out to start from random weights'}.get(
                key, f'. {PRETRAINING_HINT}')
            raise MissingCheckpointError(f'checkpoint {file!r} does not exist; name another file by --cfg-options '
                                         f'{key}=FILE{advice}')


def _pretrained(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The checkpoints of all initializers of type 'Pretrained' in a tree of dicts and lists, by dotted keys."""
    if isinstance(node, Mapping):
        if type_name(node.get('type')) == 'Pretrained':
            yield f'{key}.checkpoint', node.get('checkpoint')
        for name, child in node.items():
            yield from _pretrained(child, f'{key}.{name}')
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _pretrained(child, f'{key}.{index}')


def require_data(cfg: Config, splits: Sequence[str]) -> None:
    """Raises a ConfigError for annotation files and folders of images that do not exist.

    Args:
        cfg: A whole config.
        splits: Splits whose data is needed, of 'train', 'val' and 'test'.
    """
    missing = [f'{path!r} of {split}_dataloader' for split in splits for path in _files_of(cfg, split)
               if not os.path.exists(path)]
    if missing:
        roots = ' '.join(f'{split}_dataloader.dataset.data_root=FOLDER' for split in splits)
        more = f' and {len(missing) - 2} more' if len(missing) > 2 else ''
        without = '. A training without validation: val_cfg=None val_dataloader=None val_evaluator=None' if (
            not any('train_dataloader' in path for path in missing) and 'val' in splits) else ''
        raise ConfigError(f'the data is missing: {", ".join(missing[:2])}{more}. If it is elsewhere: --cfg-options '
                          f'{roots}, or as the config says{without}')


def _files_of(cfg: Config, split: str) -> Iterator[str]:
    """Local files and folders that the data sets of a split read."""
    loader = cfg.get(f'{split}_dataloader')
    for dataset in leaf_datasets(loader.dataset) if loader else ():
        root = dataset.get('data_root') or ''
        folders = dataset.get('data_prefix') or {}
        names = [dataset.get('ann_file')]
        if type_name(dataset.get('type')) in FOLDERS_OF:
            names += folders.values() if isinstance(folders, Mapping) else [folders]
            names.append(dataset.get('split') if not folders else None)
        for name in names:
            path = os.path.join(root, name) if isinstance(name, str) and name else ''
            if path and '://' not in path and not dataset.get('backend_args'):
                yield path


def require_gpus(processes: int, backend: str | None) -> str | None:
    """Makes sure that each process of a job on this machine gets a GPU, or that all share the CPU.

    Args:
        processes: Their number on this machine.
        backend: The communication that the user has asked for on the command line, None if for none.

    Returns:
        A note if the processes share the CPU, else None.

    Raises:
        ConfigError: If there are GPUs, but fewer than processes, or none and the user has asked for NCCL.
    """
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise ConfigError(f'{processes} processes need as many GPUs, and torch sees {gpus} on this machine: start '
                          f'{gpus}, or set CUDA_VISIBLE_DEVICES= to train on the CPU')
    if backend == 'nccl' and not gpus:
        raise ConfigError('env_cfg.dist_cfg.backend=nccl needs GPUs, and torch sees none; without this option the '
                          'processes communicate by gloo on the CPU')
    return None if gpus else f'torch sees no GPU: {processes} processes share the CPU'
