# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The zoo: configs by name, in a checkout or in the installed package, for users of this package and of mmpretrain.

OpenMMLab's tools look for the files of a package in ``<package>/.mim``, and only mim does so for any package. The
classifiers are registered with mmpretrain's hub when this package is imported. mmengine and mmdet look in their own
packages only; :func:`config_path` returns a path for them.
"""
import difflib
import fnmatch
import importlib.util
import logging
from pathlib import Path
from typing import Any

from mmengine.fileio import load
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

#: Folders of configs whose models are mmpretrain's classifiers.
CLASSIFIER_FOLDERS = ('pretrain', 'ablations', 'cifar10', 'dpconv')

#: The prefix, in a metafile, of weights that this project does not have.
UNPUBLISHED = 'unpublished://'


def list_configs(pattern: str = '*') -> list[str]:
    """Names of all models that have a config: classifiers, detectors and segmentors.

    Args:
        pattern: Shell pattern, in lower case, that the whole name must match. Defaults to '*'.

    Returns:
        Names for :func:`config_path`, in alphabetical order.
    """
    return sorted(fnmatch.filter(_read_metafiles(), pattern))


def config_path(name: str) -> str:
    """Absolute path of a config that this package ships.

    It also works in a config of your own, in every process and before any other import::

        _base_ = __import__('partialnet_mm').config_path('mask_rcnn/partialnet_s_1x.py')

    Args:
        name: A model's name (one of :func:`list_configs`), a path below ``configs`` ('mask_rcnn/partialnet_s_1x.py',
            with or without '.py'), or a file's name alone if only one folder has it.

    Raises:
        ValueError: If there is no such config, or several.
        FileNotFoundError: If the package was installed without its configs.
    """
    root = _find_root()
    file_name = name if name.endswith('.py') else f'{name}.py'
    path = root / 'configs' / file_name
    if path.is_file():
        return str(path)
    models = _read_metafiles()
    if name.lower() in models:
        return str(root / models[name.lower()])
    found = sorted(root.glob(f'configs/[!_]*/{file_name}')) if file_name == Path(file_name).name else []
    if len(found) == 1:
        return str(found[0])
    if found:
        raise ValueError(f'config {name!r} is in several folders; name one of '
                         f'{[path.relative_to(root / "configs").as_posix() for path in found]}')
    files = [config.partition('/')[2] for config in models.values()]
    near = difflib.get_close_matches(name, [*models, *files], n=3, cutoff=0.4)
    raise ValueError(f'there is no config {name!r} in {str(root / "configs")!r}; the nearest names are {near}, and '
                     'partialnet_mm.list_configs() returns all models')


def register_with_mmpretrain() -> bool:
    """Registers the classifiers by name for mmpretrain's ``get_model``, ``list_models`` and inferencers.

    This package calls it when it is imported. A name that mmpretrain already has is not changed.

    Returns:
        Whether they are registered: not where mmpretrain or this package's configs are missing.
    """
    if importlib.util.find_spec('mmpretrain') is None:
        return False
    try:
        from mmpretrain.apis.model import ModelHub
    except (ImportError, AssertionError) as error:  # it asserts the versions of other packages
        print_log(f'mmpretrain does not import, so PartialNet is not registered with it by name: {error}',
                  logger='current', level=logging.WARNING)
        return False
    try:
        root = _find_root()
    except FileNotFoundError:  # the package alone, copied into another project
        return False
    for folder in CLASSIFIER_FOLDERS:
        metafile = root / 'configs' / folder / 'metafile.yml'
        if not any(ModelHub.has(model['Name']) for model in load(metafile)['Models']):
            ModelHub.register_model_index(metafile, config_prefix=root)
    return True


@CheckpointLoader.register_scheme(prefixes=UNPUBLISHED, force=True)
def load_from_unpublished(filename: str, map_location: Any = None) -> None:
    """Raises an error where a library loads weights that this project does not have, so that none predicts without."""
    name = filename[len(UNPUBLISHED):]
    raise FileNotFoundError(
        f'this project has no weights of {name!r} (docs/checkpoints.md names those that others have published: T0 and '
        f'T1 of the author of the paper, and FasterNet). Train them with {config_path(name)!r} (tools/train.py, or mim '
        'train partialnet_mm) and pass the checkpoint as pretrained=FILE; pretrained=False builds the model with '
        'random weights')


def _find_root() -> Path:
    """The folder of ``configs`` and ``model-index.yml``: ``.mim`` of an installed package, or the checkout's root."""
    package = Path(__file__).resolve().parent
    for root in (package / '.mim', package.parent):
        # The parent folder may belong to another project with its own index and configs.
        if all((root / 'configs' / folder / 'metafile.yml').is_file() for folder in CLASSIFIER_FOLDERS):
            return root
    raise FileNotFoundError(f"{str(package / '.mim')!r} has no configs: install the package again, in a "
                            'clone of its repository: pip install --force-reinstall --no-deps . (or -e .)')


def _read_metafiles() -> dict[str, str]:
    """The config of each model of the index, as a path below the root, by its name in lower case."""
    root = _find_root()
    models: dict[str, str | None] = {}
    for metafile in load(root / 'model-index.yml')['Import']:
        models.update({model['Name'].lower(): model['Config'] for model in load(root / metafile)['Models']})
    return models
