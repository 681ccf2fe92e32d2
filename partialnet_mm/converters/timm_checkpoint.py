# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints of trainings by timm, converted into those of this package, and back.

The tensors of ``partialnet_mm.timm`` have the names that they have in mmpretrain's classifiers. What differs is what is
around them: names of wrappers, averaged weights, and objects that the other library does not read.
"""
import re

from torch import Tensor

from ..checkpoint.layouts import STEM
from ..checkpoint.pretrained import find_state_dict, shorten
from .publish import strip_checkpoint

#: Where timm's trainings keep averaged weights, in the order of its own reader.
AVERAGED = ('state_dict_ema', 'model_ema')
#: What timm's trainings, torch.compile and timm's feature extractors put before names.
_WRAPPERS = re.compile(r'^((module|_orig_mod|model)\.)+')
_CLASSIFIER = re.compile(r'backbone\.(downsample_layers|stages)\.|head\.layers\.[01]\.fc\.')


def from_timm(content: dict, no_ema: bool = False) -> dict[str, dict]:
    """Converts a checkpoint of timm into one of this project.

    Args:
        content: What timm's trainings or ``model.state_dict()`` give, of ``partialnet_*``; the averaged weights are
            taken where there are some.
        no_ema: Whether to take the weights of the last step instead. Defaults to False.

    Returns:
        'state_dict' as of mmpretrain's classifiers, a copy, and 'meta' with 'backbone' and 'epoch' where the checkpoint
        names its model and epoch.

    Raises:
        ValueError: If it is of another network, a weight is not finite, or ``no_ema`` finds no averages.
    """
    averaged = next((content[key] for key in AVERAGED if isinstance(content.get(key), dict)), None)
    if no_ema and averaged is None:
        raise ValueError(f'no_ema (--no-ema): there is none of {", ".join(AVERAGED)}, so no averages were taken')
    state = find_state_dict(content if averaged is None or no_ema else dict(state_dict=averaged))
    state = {_WRAPPERS.sub('', name): value for name, value in state.items()}
    _require_classifier(state)
    meta = content.get('meta') if isinstance(content.get('meta'), dict) else {}
    arch = re.fullmatch(r'partialnet_(\w+)', str(content.get('arch')))
    if arch:
        meta = dict(meta, backbone=dict(type='PartialNet', arch=arch[1]))
    if isinstance(content.get('epoch'), int):
        meta = dict(meta, epoch=content['epoch'])
    return strip_checkpoint(dict(state_dict=state, meta=meta))


def to_timm(content: dict, no_ema: bool = False) -> dict[str, dict]:
    """Converts a checkpoint of a classifier of this project into one that ``timm.create_model`` loads.

    Args:
        content: Of a training by mmpretrain, or what another converter wrote.
        no_ema: As of :func:`strip_checkpoint`. Defaults to False.

    Returns:
        'state_dict', a copy, and 'meta'.

    Raises:
        ValueError: If it is of something else than such a classifier, a weight is not finite, or ``no_ema`` finds no
            averages.
    """
    stripped = strip_checkpoint(content, no_ema)
    state = {_WRAPPERS.sub('', name): value for name, value in stripped['state_dict'].items()}
    _require_classifier(state)
    if 'head.layers.0.fc.weight' not in state:
        raise ValueError('it has no head.layers.0.fc.weight: the classifiers of timm have a head, this is a backbone '
                         'alone')
    return dict(stripped, state_dict=state)


def _require_classifier(state: dict[str, Tensor]) -> None:
    if f'backbone.{STEM}' not in state:
        raise ValueError(f'no PartialNet: it has no backbone.{STEM}, its tensors begin with {shorten(list(state), 3)}')
    others = [name for name in state if not _CLASSIFIER.match(name)]
    if others:
        raise ValueError(f'{len(others)} tensors are of no classifier of timm, which has neither other heads nor norms '
                         f'of returned feature maps: {shorten(others)}')
