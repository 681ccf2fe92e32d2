# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Weights that provably arrive: loading a backbone from a checkpoint."""
import logging
import os
import re
from typing import Dict, Iterable, List, Optional, Union

from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from torch import Tensor, nn

from .safe_load import read_checkpoint

#: Least part of the backbone's tensors that a checkpoint must bring.
MIN_LOADED = 0.9


def pretrained_cfg(init_cfg: Union[dict, List[dict], None]) -> Optional[dict]:
    """The checkpoint that an ``init_cfg`` names.

    Args:
        init_cfg (dict | list[dict] | None): As given to a backbone.

    Returns:
        dict | None: Arguments of :func:`load_pretrained`, or None if
        ``init_cfg`` is not of type 'Pretrained'.

    Raises:
        ValueError: If it is, and has no checkpoint or keys beyond
            'checkpoint', 'prefix' and 'map_location'.
    """
    if isinstance(init_cfg, (list, tuple)) and len(init_cfg) == 1:
        init_cfg = init_cfg[0]
    if not isinstance(init_cfg, dict) or init_cfg.get('type') != 'Pretrained':
        return None
    options = {key: value for key, value in init_cfg.items() if key != 'type'}
    if not options.get('checkpoint') or set(options) - {'checkpoint', 'prefix', 'map_location'}:
        raise ValueError("init_cfg of type 'Pretrained' takes checkpoint, which is needed, prefix and map_location; "
                         f'got {init_cfg!r}')
    options.pop('map_location', None)  # tensors are copied to the model wherever it is
    return options


def load_pretrained(module: nn.Module, checkpoint: str, prefix: Optional[str] = None) -> Dict[str, List[str]]:
    """Loads a checkpoint into a backbone, and says what arrived.

    Args:
        module (nn.Module): The backbone.
        checkpoint (str): A local file, or an address that mmengine has a file
            backend for (``https://``, ``s3://``, ...).
        prefix (str, optional): What the backbone's tensors are called by in
            the checkpoint, usually 'backbone.'. Defaults to None.

    Returns:
        dict[str, list[str]]: Names of tensors, under 'loaded', 'missing' (in
        the backbone, not in the file), 'unexpected' (in the file under the
        prefix, not in the backbone) and 'mismatched' (of another shape).

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it cannot be read, brings less than 90 % of the
            backbone's tensors, or has more than a tenth beyond them; norms of
            returned maps do not count.
    """
    if '://' not in checkpoint and not os.path.isfile(checkpoint):
        raise FileNotFoundError(
            f'init_cfg.checkpoint {checkpoint!r} does not exist. Get it by pretraining with configs/pretrain, '
            'name another file (--cfg-options model.backbone.init_cfg.checkpoint=FILE), or start from random '
            'weights with --cfg-options model.backbone.init_cfg=None')
    # What an address holds is fetched to a file first: it is read as data, too.
    with get_local_path(checkpoint) as path:
        content = read_checkpoint(path)
    tensors = content.get('state_dict', content.get('model', content))
    if not isinstance(tensors, dict):
        raise ValueError(f'checkpoint {checkpoint!r} holds a {type(tensors).__name__} in the place of its state dict; '
                         "allowed are tensors by name under 'state_dict', under 'model', or as the whole file")
    prefix = prefix or ''
    given = {name[len(prefix):]: value for name, value in tensors.items()
             if name.startswith(prefix) and isinstance(value, Tensor)}
    own = module.state_dict()
    report = dict(
        loaded=[name for name in own if name in given and given[name].shape == own[name].shape],
        missing=[name for name in own if name not in given],
        unexpected=[name for name in given if name not in own],
        mismatched=[name for name in own if name in given and given[name].shape != own[name].shape])
    summary = (f'{len(report["loaded"])} of {len(own)} tensors of {type(module).__name__} loaded from '
               f'{checkpoint!r} (prefix {prefix!r})')
    for kind in ('missing', 'mismatched', 'unexpected'):
        if report[kind]:
            summary += f'\n  {kind} ({len(report[kind])}): {_shorten(report[kind])}'
    # A returned map's norm exists in dense prediction only, so neither side need have it.
    needed, loaded = _without_output_norms(own), _without_output_norms(report['loaded'])
    foreign = _without_output_norms(report['unexpected'])
    if len(loaded) < MIN_LOADED * len(needed) or len(foreign) > len(needed) - MIN_LOADED * len(needed):
        raise ValueError(f'only {summary}\nat least {MIN_LOADED:.0%} must match on either side: the checkpoint belongs '
                         'to another network or arch, is merged where deploy=False or the reverse, or needs another '
                         f'prefix. Its tensors begin with {_shorten(list(tensors), 3)}')
    module.load_state_dict({name: given[name] for name in report['loaded']}, strict=False)
    level = logging.INFO if len(loaded) == len(needed) and not foreign else logging.WARNING
    MMLogger.get_current_instance().log(level, summary)
    return report


def _without_output_norms(names: Iterable[str]) -> List[str]:
    return [name for name in names if not re.match(r'norm\d\.', name)]


def _shorten(names: List[str], most: int = 12) -> str:
    more = f', ... {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
