# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import inspect

import pytest

from partialnet_mm.models import PartialNet
from partialnet_mm.models._arguments import named_arguments


class Box:
    """A box."""

    @named_arguments
    def __init__(self, width, height=2, *, colour='red'):
        """Makes a box."""
        self.given = width, height, colour


class Crate(Box):

    def __init__(self, **kwargs):
        super().__init__(1, **kwargs)


@pytest.mark.parametrize('args, kwargs, given', [
    ((1, ), {}, (1, 2, 'red')), ((1, 3), dict(colour='blue'), (1, 3, 'blue')),
    ((), dict(height=4, width=5), (5, 4, 'red')),
])
def test_known_arguments_pass(args, kwargs, given):
    assert Box(*args, **kwargs).given == given


@pytest.mark.parametrize('kwargs, message', [
    (dict(widht=3), "Box has no argument 'widht' (given widht=3); did you mean 'width'? Allowed are width, height, "
                    'colour'),
    (dict(color='blue'), "Box has no argument 'color' (given color='blue'); did you mean 'colour'? Allowed are width, "
                         'height, colour'),
    (dict(our=3), "Box has no argument 'our' (given our=3); did you mean 'colour'? Allowed are width, height, colour"),
    (dict(lid=[1]), "Box has no argument 'lid' (given lid=[1]). Allowed are width, height, colour"),
])
def test_unknown_arguments(kwargs, message):
    with pytest.raises(TypeError) as error:
        Box(**{'width': 1, **kwargs})
    assert str(error.value) == message


def test_subclasses_are_called_by_their_own_name():
    with pytest.raises(TypeError, match="Crate has no argument 'heigth' .* did you mean 'height'"):
        Crate(heigth=1)


def test_missing_arguments_are_pythons_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'width'"):
        Box()


def test_signature_and_docstring_stay():
    assert list(inspect.signature(Box.__init__).parameters) == ['self', 'width', 'height', 'colour']
    assert Box.__init__.__doc__ == 'Makes a box.'
    assert inspect.signature(PartialNet).parameters['arch'].default == 't0'
