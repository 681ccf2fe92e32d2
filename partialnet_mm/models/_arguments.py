# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Clear errors for misspelt arguments."""
import difflib
import functools
import inspect
from collections.abc import Callable

from torch import nn

from .. import config_types


def named_arguments(init: Callable) -> Callable:
    """Makes a constructor answer an unknown argument with those that it has.

    Args:
        init: An ``__init__`` without ``**kwargs``.

    Returns:
        Callable: The same, raising a TypeError that names the unknown
        argument, its value, the nearest known one and all that are allowed.
    """
    allowed = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(self: object, *args: object, **kwargs: object) -> None:
        for name, value in kwargs.items():
            if name not in allowed:
                near = ([known for known in allowed if name in known]
                        or difflib.get_close_matches(name, allowed, n=1, cutoff=0.7))
                raise TypeError(f'{type(self).__name__} has no argument {name!r} (given {name}={value!r})'
                                f'{f"; did you mean {near[0]!r}?" if near else "."} Allowed are {", ".join(allowed)}')
        init(self, *args, **kwargs)

    return checked


def find_type(layer_type: str | type) -> Callable:
    """The class or builder of a registered layer.

    Args:
        layer_type: A name in mmengine's registry, or a class.

    Returns:
        The class or builder.

    Raises:
        KeyError: If no such type is registered.
    """
    found = config_types.find_type(layer_type)
    if found is None:
        raise KeyError(f'{layer_type!r} is not registered: a layer of your own needs @MODELS.register_module() of '
                       'mmengine, and its module in custom_imports')
    return found


def build_with(cfg: dict, given: dict, offered: dict) -> nn.Module:
    """Builds a registered layer with what its position in the network decides.

    Args:
        cfg: Config with ``type``, see :func:`find_type`.
        given: Arguments that every layer of this kind takes, ``channels``
            among them.
        offered: Arguments that are added where the constructor takes them and
            the config does not set them.

    Returns:
        The layer.

    Raises:
        KeyError: If no such type is registered.
    """
    layer_type = find_type(cfg['type'])
    accepted = inspect.signature(layer_type).parameters
    arguments = {name: value for name, value in offered.items() if name in accepted}
    arguments.update((name, value) for name, value in cfg.items() if name != 'type')
    return layer_type(**given, **arguments)
