# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Weights that provably arrive: loading a backbone from a checkpoint."""
import logging
import os
import re
from collections.abc import Iterable

from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ..config_types import type_name
from .errors import PRETRAINING_HINT, CheckpointError, MissingCheckpointError
from .hashed_name import check_hashed_name
from .layouts import (
    around_backbone,
    differences,
    foreign_layout,
    refuse_other_network,
    separate_logits,
    with_own_names,
)
from .reader import read_checkpoint

#: Least fraction of the backbone's tensors that a checkpoint must hold.
MIN_LOADED = 0.9
#: Most tensors of a checkpoint, and most letters in the name of one.
MAX_TENSORS, MAX_NAME = 10_000, 500
#: Ending of the names of a search's gates (DPConv).
SEARCH_GATES = '.split_gates.t'


def pretrained_cfg(init_cfg: dict | list[dict] | None) -> dict | None:
    """The checkpoint that an ``init_cfg`` names.

    Args:
        init_cfg: As given to a backbone.

    Returns:
        Arguments of :func:`load_pretrained`, or None if ``init_cfg`` is not of type 'Pretrained'.

    Raises:
        ValueError: If it is, and has no checkpoint, or keys other than 'checkpoint', 'prefix' and 'map_location', or is
            one of several.
        TypeError: If it is neither a dict nor a list of dicts, as after a dict was written out on a command line.
    """
    if init_cfg is None:
        return None
    cfgs = list(init_cfg) if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    if not all(isinstance(cfg, dict) for cfg in cfgs):
        raise TypeError(f'init_cfg must be a dict, a list of them, or None, got {init_cfg!r}. On a command line, write '
                        'init_cfg.type=Pretrained init_cfg.checkpoint=FILE')
    if not any(type_name(cfg.get('type')) == 'Pretrained' for cfg in cfgs):
        return None
    if len(cfgs) > 1:  # mmengine would load whatever fits
        raise ValueError(f"init_cfg of type 'Pretrained' must be the only one, got {init_cfg!r}")
    init_cfg, = cfgs
    options = {key: value for key, value in init_cfg.items() if key != 'type'}
    if not options.get('checkpoint') or set(options) - {'checkpoint', 'prefix', 'map_location'}:
        raise ValueError("init_cfg of type 'Pretrained' takes checkpoint, which is needed, prefix and map_location; "
                         f'got {init_cfg!r}')
    options.pop('map_location', None)  # tensors are copied to the model wherever it is
    if options.get('prefix') and not options['prefix'].endswith('.'):
        options['prefix'] += '.'  # as mmengine does
    return options


def load_pretrained(module: nn.Module, checkpoint: str, prefix: str | None = None) -> dict[str, list[str]]:
    """Loads a checkpoint into a backbone, and logs which tensors were loaded.

    Args:
        module: The backbone.
        checkpoint: A local file, or an address that mmengine has a file backend for (``https://``, ``s3://``, ...). One
            of the official code of PartialNet or FasterNet, or of timm's FasterNet, is read as it is.
        prefix: Beginning of the names of the backbone's tensors in the checkpoint, usually 'backbone.'; not used for
            a file of other code. Defaults to None.

    Returns:
        Names of tensors, under 'loaded', 'missing' (in the backbone, not in the file), 'unexpected' (in the file under
        the prefix, not in the backbone) and 'mismatched' (of another shape).

    Raises:
        MissingCheckpointError: If the file does not exist.
        CheckpointError: If it cannot be read, has another hash than its name (:func:`check_hashed_name`), holds less
            than 90 % of the backbone's tensors, or more than a tenth beyond them; norms of returned feature maps do not
            count. If it is of another width, depth, number of heads or kind of block; if a file of other code differs
            from the backbone in any tensor, or does not show its blocks (:func:`refuse_other_network`).
    """
    if '://' not in checkpoint and not os.path.exists(checkpoint):
        raise MissingCheckpointError(
            f'init_cfg.checkpoint {checkpoint!r} does not exist; name another file by --cfg-options '
            f'model.backbone.init_cfg.checkpoint=FILE. {PRETRAINING_HINT}')
    # An address is fetched to a file first, which is read as data, too.
    with get_local_path(checkpoint) as path:
        check_hashed_name(path, checkpoint)
        content = read_checkpoint(path)
    tensors = find_state_dict(content, checkpoint)
    prefix = prefix or ''
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    own = module.state_dict()
    mixer_residual = getattr(module, 'mixer_residual', None)
    layout, least, file = None, MIN_LOADED, f'checkpoint {checkpoint!r}'
    if (renamed := with_own_names(tensors, mixer_residual, file)) is not None:
        layout, least, tensors, prefix = foreign_layout(tensors), 1, renamed, 'backbone.'
    given = {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}
    if layout is not None:
        refuse_other_network(own, given, layout, mixer_residual is not None, file)
    report = dict(
        loaded=[name for name in own if name in given and given[name].shape == own[name].shape],
        missing=[name for name in own if name not in given],
        unexpected=[name for name in given if name not in own],
        mismatched=[name for name in own if name in given and given[name].shape != own[name].shape])
    if any(name.endswith(SEARCH_GATES) for name in report['unexpected']):
        raise CheckpointError(f'checkpoint {checkpoint!r} is of a search for split ratios, and this '
                              f'{type(module).__name__} has fixed ones: tools/model_converters/dpconv_to_fixed.py '
                              'removes the gates')
    # The norm of a returned feature map exists in dense prediction only, so neither side needs it.
    needed, loaded = _without_output_norms(own), _without_output_norms(report['loaded'])
    missing, foreign = _without_output_norms(report['missing']), _without_output_norms(report['unexpected'])
    summary = (f'{len(report["loaded"])} of {len(own)} tensors of {type(module).__name__} loaded from '
               f'{checkpoint!r} ({f"in {layout.title}" if layout else f"prefix {prefix!r}"})')
    for kind, names in (
            ('missing', missing), ('mismatched', report['mismatched']), ('unexpected', report['unexpected']),
            ('norms of returned feature maps, which a classifier does not have; they start afresh',
             [name for name in report['missing'] if name not in missing]),
            ('in the file, but not under the prefix', [name for name in tensors if not name.startswith(prefix)])):
        if names:
            summary += f'\n  {kind} ({len(names)}): {shorten(names)}'
    if len(loaded) < least * len(needed) or len(foreign) > len(needed) - least * len(needed):
        differs = ', '.join(differences(own, given).values())
        raise CheckpointError(f'only {summary}\nat least {least:.0%} must match on either side: the checkpoint '
                              f'belongs to another network or arch{f" (it has {differs})" if differs else ""}, is '
                              'merged where deploy=False or the reverse, or needs another prefix. Its tensors begin '
                              f'with {shorten(list(tensors), 3)}')
    if layout is None:
        # A search without attention may go on in a network with it.
        refuse_other_network(own, given, None, True, file, ignored=('attentions', 'spatial_attention'))
    module.load_state_dict({name: given[name] for name in report['loaded']}, strict=False)
    level = logging.INFO if len(loaded) == len(needed) and not foreign else logging.WARNING
    MMLogger.get_current_instance().log(level, summary)
    return report


def find_state_dict(content: dict, checkpoint: str | None = None) -> dict[str, object]:
    """The tensors by name that a checkpoint holds.

    Args:
        content: What was read: tensors under 'state_dict', under 'model', or as the whole dict.
        checkpoint: Name of the file for messages. Defaults to None.

    Returns:
        Names and values; the values are not checked. Merged blocks have the names of :func:`separate_logits`.

    Raises:
        CheckpointError: If there is something else, or a name is none that a message can show.
    """
    file = 'it' if checkpoint is None else f'checkpoint {checkpoint!r}'
    tensors = content.get('state_dict', content.get('model', content))
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f'{file} holds a {type(tensors).__name__} instead of its state dict; allowed are tensors '
                              "by name under 'state_dict', under 'model', or as the whole file")
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f'{file} holds {len(tensors)} tensors; at most {MAX_TENSORS} are allowed')
    wrong = next((name for name in tensors if not name.isprintable() or len(name) > MAX_NAME), None)
    if wrong is not None:
        raise CheckpointError(f'{file} holds a tensor by the name {wrong[:50]!r}; allowed are at most {MAX_NAME} '
                              'printable letters')
    return separate_logits(tensors)


def content_for(model: dict, content: dict, checkpoint: str | None = None) -> dict:
    """A checkpoint's content by the names of the model that a config builds.

    Args:
        model: Config of the model.
        content: What was read.
        checkpoint: Name of the file for messages. Defaults to None.

    Returns:
        The content as it is, if it is of no other code or the model has no PartialNet. Otherwise 'state_dict', see
        :func:`around_backbone`, and an empty 'meta'.

    Raises:
        CheckpointError: If it holds no state dict, or several networks.
    """
    if not _builds_partialnet(model):
        return content
    renamed = around_backbone(find_state_dict(content, checkpoint),
                              'it' if checkpoint is None else f'checkpoint {checkpoint!r}')
    return content if renamed is None else dict(state_dict=renamed, meta={})


def _builds_partialnet(cfg: object) -> bool:
    if isinstance(cfg, dict):
        return type_name(cfg.get('type')) == 'PartialNet' or any(map(_builds_partialnet, cfg.values()))
    return isinstance(cfg, (list, tuple)) and any(map(_builds_partialnet, cfg))


def _without_output_norms(names: Iterable[str]) -> list[str]:
    return [name for name in names if not re.match(r'norm\d\.', name)]


def shorten(names: list[str], most: int = 12) -> str:
    """The first names of a list, and how many more there are."""
    more = f', ... {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
