# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Values on a command line."""
import pytest
from mmengine.config import DictAction

from partialnet_mm.engine.runners.values import parse_value


@pytest.mark.parametrize('text', [
    '', '1', '1e-3', 'a', 'True', 'false', 'None', 'a=b', 'a,', '1,2,3', '[1,2]', '[1,]', '(1,2)', '[(1,2),[a,b],c]',
    '[]', '()', "['a','b']", '"[a,b]"', "'a'", '/a/b(1)', '(a)b', 'epoch_{}.pth', '[[1],[2,[3]]]'])
def test_as_mmengine(text):
    expected = DictAction._parse_iterable(text)
    assert parse_value(text) == expected and type(parse_value(text)) is type(expected)


@pytest.mark.parametrize('text, value', [
    ("['traffic light','stop sign']", ['traffic light', 'stop sign']), ('traffic light', 'traffic light'),
    ('/my data/a', '/my data/a'), ("[ 'a, b' , c d ]", ['a, b', 'c d']), ("['1',1]", ['1', 1]), ("bob's", "bob's"),
    ("[bob's, x]", ["bob's", 'x']), ('(1, 2), (3, 4)', [(1, 2), (3, 4)]), ("{'a': [1]}", dict(a=[1]))])
def test_blanks_and_quotes_arrive(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize('text, end', [("['a'", ']'), ('(1,2', ')'), ("['a]", "'"), ('a,[b', ']'), ('"abc', '"')])
def test_what_has_no_end(text, end):
    with pytest.raises(ValueError, match=f'has no closing \\{end}$'):
        parse_value(text)
