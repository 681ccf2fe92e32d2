# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""mmengine's loading of checkpoints, by :func:`read_checkpoint`."""
import os
import re
from collections import OrderedDict
from collections.abc import Callable

from mmengine.fileio import get_local_path
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from torch import Tensor

from .errors import CheckpointError
from .hashed_name import check_hashed_name
from .pretrained import find_state_dict
from .reader import read_checkpoint

#: All that mmengine and its continuation have a loader for; they are patterns. '' is a local file.
SCHEMES = ('', 'http://', 'https://', 'pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'modelzoo://',
           'torchvision://', 'open-mmlab://', 'openmmlab://', 'mmcls://')


def register_loader(trust: bool = False) -> None:
    """Makes mmengine read every checkpoint by :func:`read_checkpoint`: ``load_from``, resume, any ``init_cfg``.

    What an address or the name of a model zoo stands for is fetched to a temporary file first. This changes mmengine
    for the whole process; a later call replaces an earlier one.

    Args:
        trust: As of :func:`read_checkpoint`. Defaults to False.
    """
    # mmengine takes what follows the tenth letter for the name of the loader, and logs it.
    def load_from_data(filename: str, map_location: object = None) -> dict:
        """Reads a checkpoint; its tensors stay on the CPU, and are copied to the model wherever it is."""
        content = _fetch(filename, trust)
        state_dict = find_state_dict(content, filename)
        # mmengine would leave the module as it is, with a warning.
        if not any(isinstance(value, Tensor) for value in state_dict.values()):
            raise CheckpointError(f'checkpoint {filename!r} holds no tensors')
        return _backbone_of(state_dict) if filename.startswith('mmcls://') else content

    CheckpointLoader.register_scheme(SCHEMES, load_from_data, force=True)


def hand_over(path: str, content: dict) -> None:
    """Lets mmengine's next loading of a path return what is read already, so that the file is opened once.

    What was checked is then what is loaded. Later loadings of this path read the file as data.

    Args:
        path: The file, named as mmengine is going to name it.
        content: What :func:`read_checkpoint` has returned.
    """
    contents = [content]

    def load_from_opened(filename: str, map_location: object = None) -> dict:
        return contents.pop() if contents else _fetch(filename, trust=False)

    CheckpointLoader.register_scheme(rf'{re.escape(path)}\Z', load_from_opened, force=True)


def _fetch(name: str, trust: bool) -> dict:
    address = _address_of(name)
    if '://' not in address:
        return read_checkpoint(os.path.expanduser(address), trust)
    try:
        with get_local_path(address) as path:
            check_hashed_name(path, address)
            return read_checkpoint(path, trust)
    except (OSError, ValueError) as error:
        raise CheckpointError(f'checkpoint {name!r} could not be fetched: {error}') from error


def _address_of(name: str) -> str:
    """Where the file is that a name of a model zoo stands for; files and addresses stand for themselves."""
    lists: dict[str, Callable[[], dict]] = {
        'torchvision': get_torchvision_models, 'modelzoo': get_torchvision_models, 'openmmlab': get_external_models,
        'open-mmlab': get_external_models, 'mmcls': get_mmcls_models}
    scheme, separator, model = name.partition('://')
    if not separator or scheme not in lists:
        return name
    known = lists[scheme]()
    if 'mmlab' in scheme:
        model = get_deprecated_model_names().get(model, model)
    if model not in known:
        raise CheckpointError(f'checkpoint {name!r} is not known to mmengine, which lists {len(known)} names of '
                              f'{scheme}://')
    return known[model]


def _backbone_of(state_dict: dict) -> dict:
    return dict(state_dict=OrderedDict(
        (name.removeprefix('backbone.'), value) for name, value in state_dict.items() if name.startswith('backbone.')))
