# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Values on a command line: as mmengine reads them, but with their blanks."""
import ast
from typing import Any

PAIRS = {'(': ')', '[': ']'}
QUOTES = '\'"'


def parse_value(text: str) -> Any:
    """The value of ``KEY=VALUE``: a number, True, False, None, a text, or a list, tuple or dict of them.

    Lists have brackets, or only commas. Blanks inside a text stay, with or without quotes around it; a text in quotes
    inside a list may hold commas, and stays a text if it looks like a number. A dict is written as in Python.

    Raises:
        ValueError: If a list, a tuple or a text in quotes has no end.
    """
    text = text.strip()
    if len(text) > 1 and text[0] in QUOTES and text.find(text[0], 1) == len(text) - 1:
        text = text[1:-1].strip()  # a second shell has left the quotes
    if text[:1] == '{' and text[-1] == '}':
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text
    elements = _split(text)
    if len(elements) > 1 or text.endswith(','):
        return [_element(element) for element in elements]
    return _element(text)


def _element(text: str) -> Any:
    text = text.strip()
    if text[:1] in PAIRS and text[-1] == PAIRS[text[0]]:
        values = [_element(element) for element in _split(text[1:-1])]
        return tuple(values) if text[0] == '(' else values
    if len(text) > 1 and text[0] in QUOTES and text[-1] == text[0]:
        return text[1:-1]
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    words = {'true': True, 'false': False}
    return None if text == 'None' else words.get(text.lower(), text)


def _split(text: str) -> list[str]:
    """What the commas outside of brackets and quotes separate; a comma at the end separates nothing."""
    elements, waiting, quote, start = [''], [], '', True
    for letter in text:
        if quote:
            quote = '' if letter == quote else quote
        elif letter in QUOTES and start:
            quote = letter
        elif letter in PAIRS and (start or waiting):
            waiting.append(PAIRS[letter])
        elif waiting and letter == waiting[-1]:
            waiting.pop()
        if letter == ',' and not waiting and not quote:
            elements.append('')
        else:
            elements[-1] += letter
        start = letter in ',([' or (start and letter == ' ')
    if quote or waiting:
        raise ValueError(f'{text!r} has no closing {quote or waiting[-1]}')
    return elements if elements[-1].strip() else elements[:-1]
