# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Reads annotation files in COCO format window by window, into columns.

``json.load`` needs several gigabytes for the 450 MB of COCO's training set. Here 4 MB of text are in memory at a time,
and what the checks need of them goes into columns.
"""
import codecs
import contextlib
import json
import math
import os
import re
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

NONE, POLYGONS, RLE, UNUSABLE, MALFORMED = range(5)  # forms of a mask; mmdet leaves objects with unusable ones out
BLANKS = re.compile(r'[ \t\n\r]*')
_POLYGON = r'\[[-+0-9.eE, \t\n\r]*\]'
_MASK = re.compile(rf'"segmentation"\s*:\s*\[\s*({_POLYGON}(?:\s*,\s*{_POLYGON})*)\s*\]')
#: The key that replaces 'segmentation' where the text of polygons is set aside.
_ASIDE = 'segmentation/polygons'
#: Polygons of this many annotations are parsed, and of every 16th after them.
PARSED, EVERY = 20000, 16
#: Length of the text whose entries are parsed at once. More of them would keep the garbage collector busy.
TOGETHER = 1 << 15


class NotCocoError(ValueError):
    """A file that mmdet cannot read either; has the kind of the finding and where in the file."""

    def __init__(self, kind: str, where: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.where = kind, where


class _Stream:
    """The values of a JSON file, one after the other, in a window of the text.

    Coordinates of polygons are nine tenths of a large file, and most of the time that its parsing takes. Their text is
    set aside in ``polygons``, and annotations have its number.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.decode = codecs.getincrementaldecoder('utf-8')().decode
        self.scan = json.JSONDecoder().raw_decode
        self.text, self.pos, self.bytes, self.ended = '', 0, 0, False
        self.polygons: dict[int, str] = {}
        self.masks = 0
        self.one_by_one = False
        self.where = ''

    def _more(self) -> None:
        block = self.file.read(1 << 22)
        self.ended = not block
        try:
            text = self.decode(block, self.ended)
        except UnicodeDecodeError as error:
            raise NotCocoError('annotations not JSON', f'byte {self.bytes + error.start}', 'it is not UTF-8 text') \
                from error
        self.bytes += len(block)
        parts = _MASK.split(self.text[self.pos:] + text)  # what is between masks, the mask, and so on
        numbers = range(self.masks, self.masks + len(parts) // 2)
        self.polygons.update(zip(numbers, parts[1::2]))
        parts[1::2] = [f'"{_ASIDE}":{number}' for number in numbers]
        self.text, self.pos, self.masks, self.one_by_one = ''.join(parts), 0, numbers.stop, False

    def fail(self, text: str) -> NotCocoError:
        return NotCocoError('annotations not JSON', self.where,
                            f'{text}; the file may be truncated ({os.path.getsize(self.file.name)} bytes)')

    def peek(self) -> str:
        """The next character that is not blank, '' at the end."""
        while True:
            self.pos = BLANKS.match(self.text, self.pos).end()
            if self.pos < len(self.text) or self.ended:
                return self.text[self.pos:self.pos + 1]
            self._more()

    def take(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise self.fail(f'Expecting {" or ".join(map(repr, characters))}, found {found!r}')
        self.pos += 1
        return found

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.scan(self.text, self.pos)
                if end < len(self.text) or self.ended:  # otherwise it may be the first digits of a number
                    self.pos = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith('Unterminated string') or error.pos > len(self.text) - 16
                if self.ended or not cut:
                    raise self.fail(error.msg) from error
            except RecursionError as error:
                raise self.fail('it is too deeply nested') from error
            self._more()


    def entries(self, key: str) -> Iterator[Any]:
        """The entries of a list, many at once, which is faster than one by one."""
        self.take('[')
        index = 0
        if self.peek() == ']':
            self.take(']')
            return
        following = ','
        while following == ',':
            self.peek()
            several = self._several()
            yield from several
            index += len(several)
            self.where = f'{key}[{index}]'
            yield self.value()
            following = self.take(',]')
            index += 1

    def _several(self) -> list:
        """The next entries that the window has in full; none where it is not clear at which brace they end."""
        end = self.pos + TOGETHER
        while not self.one_by_one and (end := self.text.rfind('{', self.pos + 1, end)) > 0:
            before = self.text[max(self.pos, end - 64):end].rstrip()
            if before.endswith(',') and before[:-1].rstrip().endswith('}'):
                # If this is inside of an entry, or beyond the end of the list, the text before is no list.
                with contextlib.suppress(ValueError, RecursionError):
                    several = json.loads(f'[{self.text[self.pos:self.text.rindex(",", 0, end)]}]')
                    self.pos = end
                    return several
                break
        self.one_by_one = True  # until there is more text
        return []


class CocoFile:
    """The columns of an annotation file.

    Attributes:
        images: (id, file name, width, height, keys that are missing) of each image; what is missing is None.
        categories: (id, name, keys that are missing) of each category.
        ids, image_ids, category_ids: Of each annotation.
        boxes, extents: (N, 4), the boxes as they are written and x1, y1, x2, y2 of the polygons; NaN where there are
            none, or polygons were not parsed.
        areas: (N,), NaN where there is none.
        crowd, ignored: (N,), whether mmdet takes an object for a crowd, or leaves it out.
        masks: (N,), the form of each mask.
        rle_sizes: [height, width] of each mask that is an RLE, by row.
        problems: By kind, the rows of annotations with values of a wrong type, and what is wrong.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.images: list[tuple] = []
        self.categories: list[tuple] = []
        self.ids: list[Any] = []
        self.image_ids: list[Any] = []
        self.category_ids: list[Any] = []
        self.rle_sizes: dict[int, Any] = {}
        self.problems: dict[str, dict[int, str]] = {}
        self.lists: set[str] = set()
        self._boxes, self._extents, self._areas = array('d'), array('d'), array('d')
        self._crowd, self._ignored, self._masks = bytearray(), bytearray(), bytearray()
        self._read()
        self.boxes = np.frombuffer(self._boxes).reshape(-1, 4)
        self.extents = np.frombuffer(self._extents).reshape(-1, 4)
        self.areas = np.frombuffer(self._areas)
        self.crowd, self.ignored = (np.frombuffer(flags, bool) for flags in (self._crowd, self._ignored))
        self.masks = np.frombuffer(self._masks, np.uint8)

    def rows(self, kind: str) -> np.ndarray:
        """(N,), whether each annotation has a problem of a kind."""
        found = np.zeros(len(self.ids), bool)
        found[list(self.problems.get(kind, ()))] = True
        return found

    def _read(self) -> None:
        with open(self.path, 'rb') as file:
            stream = _Stream(file)
            first = stream.peek()
            if first == '\ufeff':
                raise stream.fail('it begins with a byte order mark (BOM)')
            if first != '{':
                value = type(stream.value()).__name__
                raise NotCocoError('annotations not COCO', '', f'it holds a {value}, not an object')
            stream.take('{')
            if stream.peek() == '}':
                stream.take('}')
            else:
                while self._entry(stream) == ',':
                    pass
            if stream.peek():
                raise stream.fail('there is more after the end')

    def _entry(self, stream: _Stream) -> str:
        """Reads one key and its value; returns what follows."""
        if stream.peek() != '"':
            raise stream.fail('Expecting a name in double quotes')
        key = stream.where = stream.value()
        stream.take(':')
        read = dict(images=self._image, annotations=self._annotation, categories=self._category).get(key)
        if read is None:
            stream.value()
            return stream.take(',}')
        if stream.peek() != '[':
            raise NotCocoError('annotations not COCO', key, f'it is a {type(stream.value()).__name__}, not a list')
        self.lists.add(key)
        for index, entry in enumerate(stream.entries(key)):
            if type(entry) is not dict:
                raise NotCocoError('annotations not COCO', f'{key}[{index}]', f'{str(entry)[:60]!r} is not an object')
            if _ASIDE in entry:
                polygons = stream.polygons.pop(entry.pop(_ASIDE))
                if key == 'annotations':
                    entry['segmentation'] = _Polygons(polygons)
            read(entry)
        return stream.take(',}')

    def _category(self, entry: dict) -> None:
        self.categories.append((_key(entry.get('id')), entry.get('name'),
                                [key for key in ('id', 'name') if key not in entry]))

    def _image(self, entry: dict) -> None:
        self.images.append((_key(entry.get('id')), entry.get('file_name'), entry.get('width'), entry.get('height'),
                            [key for key in ('id', 'file_name', 'width', 'height') if key not in entry]))

    def _problem(self, kind: str, text: str) -> None:
        self.problems.setdefault(kind, {})[len(self.ids)] = text

    def _annotation(self, entry: dict) -> None:
        key, image, category = entry.get('id'), entry.get('image_id'), entry.get('category_id')
        if not type(key) is type(image) is type(category) is int:
            lacking = [key for key in ('id', 'image_id', 'category_id') if isinstance(entry.get(key, []), (list, dict))]
            if lacking:
                self._problem('annotation incomplete', f'it needs {", ".join(lacking)}')
            key, image, category = map(_key, (key, image, category))
        box = entry.get('bbox')
        try:
            if len(box) != 4:
                raise TypeError
            self._boxes.fromlist(box)
        except TypeError:
            self._boxes.extend((math.nan, ) * 4)
            self._problem('box malformed', f'bbox must be [x, y, width, height], but is {str(box)[:60]}'
                          if 'bbox' in entry else 'it has no bbox')
        area = entry.get('area')
        try:
            self._areas.append(area)
        except TypeError:
            self._areas.append(math.nan)
            self._problem('area', f'it must be a number, but is {area!r}' if 'area' in entry else 'it has no area')
        crowd = entry.get('iscrowd', False)
        if 'iscrowd' not in entry:
            self._problem('iscrowd missing', 'it has no iscrowd')
        elif isinstance(crowd, (bool, int, float)) is False:
            self._problem('iscrowd', f'it must be 0 or 1, but is {crowd!r}')
        elif crowd not in (0, 1):
            self._problem('iscrowd neither 0 nor 1', f'iscrowd is {crowd!r}: the object is taken for a crowd')
        self._crowd.append(bool(crowd))
        self._ignored.append(bool(entry.get('ignore', False)))
        self._mask(entry.get('segmentation'))
        self.ids.append(key)
        self.image_ids.append(image)
        self.category_ids.append(category)

    def _mask(self, mask: Any) -> None:
        extents = _NOWHERE
        if not mask:
            form = NONE
        elif type(mask) is _Polygons:
            form, extents = self._polygon_text(mask)
        elif type(mask) is list:
            form, extents = self._polygons(mask)
        elif type(mask) is dict:
            form = self._rle(mask)
        else:
            form = MALFORMED
            self._problem('mask malformed', f'segmentation is a {type(mask).__name__}')
        self._masks.append(form)
        self._extents.extend(extents)

    def _polygon_text(self, text: str) -> tuple[int, tuple[float, ...]]:
        if len(self.ids) < PARSED or len(self.ids) % EVERY == 0:
            try:
                return self._polygons(json.loads(f'[{text}]'))
            except json.JSONDecodeError as error:
                raise NotCocoError('annotations not JSON', f'annotations[{len(self.ids)}]',
                                   f'{error.msg} in its segmentation') from error
        polygons = [text] if ']' not in text[:-1] else re.split(r'\]\s*,', text)
        if all((commas := polygon.count(',')) >= 5 and commas % 2 for polygon in polygons):
            return POLYGONS, _NOWHERE
        return self._polygons(json.loads(f'[{text}]'))

    def _polygons(self, polygons: list) -> tuple[int, tuple[float, ...]]:
        left, top, right, bottom = math.inf, math.inf, -math.inf, -math.inf
        usable = 0
        for number, polygon in enumerate(polygons):
            if type(polygon) is not list:
                self._problem('mask malformed', f'segmentation must be a list of polygons, each a list of numbers, but '
                              f'has {str(polygon)[:60]}')
                return MALFORMED, _NOWHERE
            length = len(polygon)
            if length < 6 or length % 2:
                if not number and length < 5:  # pycocotools takes the form of all from the first
                    self._problem('mask not measurable', f'its first polygon has {length} numbers')
                elif polygon and isinstance(polygon[0], list):
                    self._problem('mask not measurable', 'a polygon must be a list of numbers, not of points')
                continue
            usable += 1
            try:
                total = sum(polygon)
            except TypeError:
                total = math.nan
            if total - total != 0:  # NaN or infinite
                self._problem('mask malformed', f'a polygon must be a list of numbers, but is {str(polygon)[:60]}')
                return MALFORMED, _NOWHERE
            xs, ys = polygon[::2], polygon[1::2]
            left, top = min(left, min(xs)), min(top, min(ys))
            right, bottom = max(right, max(xs)), max(bottom, max(ys))
        if not usable:
            self._problem('mask unusable', 'a polygon needs x and y of at least 3 points, but has '
                          f'{len(polygons[0])} numbers')
            return UNUSABLE, _NOWHERE
        return POLYGONS, (left, top, right, bottom)

    def _rle(self, mask: dict) -> int:
        size, counts = mask.get('size'), mask.get('counts')
        if counts is None or size is None or not isinstance(counts, (list, str)):
            self._problem('mask not measurable', 'an RLE needs size and counts, a list or a string')
            self._problem('mask unusable', 'an RLE needs size and counts, a list or a string')
            return UNUSABLE
        try:
            height, width = size
            total = sum(counts) if isinstance(counts, list) else rle_total(counts)
            right = total == height * width and (isinstance(counts, str) or min(counts) >= 0)
        except (TypeError, ValueError):
            right = False
        if not right:
            self._problem('mask malformed', f'the counts of the RLE do not add up to its size {size}')
            return MALFORMED
        self.rle_sizes[len(self.ids)] = size
        return RLE


class _Polygons(str):
    """The text of polygons that no one has parsed."""


_NOWHERE = (math.nan, ) * 4


def _key(value: Any) -> Any:
    """A value that can be a key of a dict; ids that cannot are like missing ones."""
    return None if isinstance(value, (list, dict)) else value


def rle_total(counts: str) -> int:
    """The number of pixels in COCO's compressed runs: groups of 5 bits, each run minus the one before the last."""
    codes = np.frombuffer(counts.encode('ascii'), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError
    ends = np.flatnonzero(~codes & 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 11:
        raise ValueError
    runs = np.add.reduceat((codes & 31) << 5 * places, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * (places[ends] + 1), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise ValueError
    return int(runs.sum())
