# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The zoo: configs found by name, in a checkout or in the installed package, by this package's users and by mmpretrain.

OpenMMLab's tools find what a package ships by ``<package>/.mim``; only mim asks
for the package. mmpretrain's hub is told of the classifiers when this package
is imported. mmengine and mmdet know their own packages only: to them,
:func:`config_path` gives a config's path.
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

#: Folders of configs whose models mmpretrain builds.
CLASSIFIER_FOLDERS = ('pretrain', 'ablations', 'cifar10', 'dpconv')

#: What a metafile has before the name of a model whose weights are not published.
UNPUBLISHED = 'unpublished://'


def list_configs(pattern: str = '*') -> list[str]:
    """Names of the models that have a config here, detectors and segmentors too.

    Args:
        pattern: Shell pattern that the whole name must match, in small
            letters. Defaults to '*'.

    Returns:
        list[str]: Names in alphabetical order, each good for
        :func:`config_path`.
    """
    return sorted(fnmatch.filter(_read_metafiles(), pattern))


def config_path(name: str) -> str:
    """Path of a config that this package ships.

    It also serves in a config of your own, in every process and whatever has
    been imported::

        _base_ = __import__('partialnet_mm').config_path('mask_rcnn/partialnet_s_1x.py')

    Args:
        name: A model's name (one of :func:`list_configs`), a path below
            ``configs`` ('mask_rcnn/partialnet_s_1x.py', '.py' may be left
            out), or a file's name alone where only one folder has it.

    Returns:
        str: The path, absolute.

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
    raise ValueError(f'there is no config {name!r} in {str(root / "configs")!r}; near it are {near}, and '
                     'partialnet_mm.list_configs() names all models')


def register_with_mmpretrain() -> bool:
    """Makes mmpretrain's ``get_model``, ``list_models`` and inferencers know the classifiers by name.

    Called when this package is imported. What mmpretrain has under a name
    already stays as it is.

    Returns:
        bool: Whether mmpretrain is here and knows them. Without it, or without
        this package's configs, nothing is done.
    """
    if importlib.util.find_spec('mmpretrain') is None:
        return False
    try:
        from mmpretrain.apis.model import ModelHub
    except (ImportError, AssertionError) as error:  # it asserts the versions that it works with
        print_log(f'mmpretrain does not import, so it will not know PartialNet by name: {error}', logger='current',
                  level=logging.WARNING)
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
    """Stands where a library loads weights that a metafile calls unpublished, so that nothing predicts without them.

    Args:
        filename: 'unpublished://' and the model's name.
        map_location: Not used; mmengine gives it. Defaults to None.

    Raises:
        FileNotFoundError: Always, with what to do.
    """
    name = filename[len(UNPUBLISHED):]
    raise FileNotFoundError(
        f'no weights of {name!r} have been published, neither by the authors of the paper nor here. Train them with '
        f'{config_path(name)!r} (tools/train.py, or mim train partialnet_mm) and give the checkpoint as '
        'pretrained=FILE; pretrained=False builds the model with random weights')


def _find_root() -> Path:
    """Where ``configs`` and ``model-index.yml`` are: ``.mim`` of an installed package, else the checkout's root."""
    package = Path(__file__).resolve().parent
    for root in (package / '.mim', package.parent):
        # The folder above may be any project's, with an index and configs of its own.
        if all((root / 'configs' / folder / 'metafile.yml').is_file() for folder in CLASSIFIER_FOLDERS):
            return root
    raise FileNotFoundError(f"{str(package / '.mim')!r} has no configs: install the package anew (pip install "
                            '--force-reinstall --no-deps partialnet-mm, or pip install -e . in a checkout)')


def _read_metafiles() -> dict[str, str]:
    """Config of each model of the index, as a path below the root, by name in small letters."""
    root = _find_root()
    models: dict[str, str | None] = {}
    for metafile in load(root / 'model-index.yml')['Import']:
        models.update({model['Name'].lower(): model['Config'] for model in load(root / metafile)['Models']})
    return models
