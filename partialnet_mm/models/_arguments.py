# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Clear errors for misspelt arguments."""
import difflib
import functools
import inspect
from collections.abc import Callable


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
                near = difflib.get_close_matches(name, allowed, n=1)
                raise TypeError(f'{type(self).__name__} has no argument {name!r} (given {name}={value!r})'
                                f'{f"; did you mean {near[0]!r}?" if near else "."} Allowed are {", ".join(allowed)}')
        init(self, *args, **kwargs)

    return checked
