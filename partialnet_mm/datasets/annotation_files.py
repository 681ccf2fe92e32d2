# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Reads annotated pictures in the formats of the common tools: VOC, YOLO, LabelMe, CVAT, COCO and VIA.

Each reader keeps boxes and outlines, and names what it leaves out and why.
"""
import base64
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as mask_utils

#: Endings of images that OpenCV reads.
IMAGE_ENDINGS = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
#: Corners of the polygon that stands for a circle or an ellipse.
CORNERS = 36


class Shape(NamedTuple):
    """One object of a picture, in its pixels."""

    label: str
    #: x1, y1, x2, y2.
    box: tuple[float, float, float, float]
    #: COCO's segmentation: polygons as x, y, x, y ... or a run length code; None for a box alone.
    outline: list[list[float]] | dict | None = None
    #: Whether training and measuring leave the region out: VOC's difficult, COCO's crowd.
    left_out: bool = False


class Picture(NamedTuple):
    """An image with its objects."""

    path: Path
    #: As an image reader sees it that turns the image by its EXIF data.
    width: int
    height: int
    shapes: list[Shape]
    #: 'train', 'val' or 'test' if the source says so.
    split: str | None


class Dropped(NamedTuple):
    """What is not in the result."""

    where: str
    why: str


class AnnotatedPictures(NamedTuple):
    """What a source has."""

    pictures: list[Picture]
    #: Names of the classes, in the order of the source where it has one.
    classes: list[str]
    dropped: list[Dropped]


def read_annotated_pictures(source: str | Path, kind: str, label_key: str | None = None) -> AnnotatedPictures:
    """Reads a folder of annotated pictures.

    Images are looked for by the path that the annotations give, then by their name anywhere below the folder. Boxes and
    outlines are cut at the border of the image. Left out, with a reason each, are images that are missing, unreadable
    or of another size than the annotations say, objects without an area, and shapes that are lines or points.

    Args:
        source: The folder, or one annotation file in the folder of its images.
        kind: 'voc', 'yolo', 'labelme', 'cvat', 'coco' or 'via'.
        label_key: For VIA: the attribute of a region that names its class. Defaults to the only attribute, or
            'label', 'class', 'name', 'type' or 'category'.

    Returns:
        The pictures in the order of their paths, the classes, and what was left out.

    Raises:
        ValueError: If the source has no annotations of the kind, or a file cannot be read as one.
        FileNotFoundError: If the source does not exist.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f'{str(source)!r} does not exist')
    if kind not in READERS:
        raise ValueError(f'the format must be one of {", ".join(READERS)}, got {kind!r}')
    reader = READERS[kind](source, label_key)
    reader.read()
    if not reader.pictures and not reader.dropped:
        raise ValueError(f'{str(source)!r} has no annotations of the format {kind!r}: {reader.needs}')
    used = {shape.label for picture in reader.pictures for shape in picture.shapes}
    classes = list(dict.fromkeys([*reader.classes, *sorted(used)]))
    return AnnotatedPictures(sorted(reader.pictures, key=lambda picture: str(picture.path)), classes, reader.dropped)


class _Reader:
    """What the formats share: looking for files, sizes, and cutting at the border."""

    #: What a source of the format consists of.
    needs = ''

    def __init__(self, source: Path, label_key: str | None) -> None:
        self.source = source
        self.root = Path(os.path.normpath(source if source.is_dir() else source.parent))
        self.label_key = label_key
        self.pictures: list[Picture] = []
        self.classes: list[str] = []
        self.dropped: list[Dropped] = []
        self.known: set[Path] = set()
        self.images: dict[str, list[Path]] = defaultdict(list)
        for path in _files(self.root):
            if path.suffix.lower() in IMAGE_ENDINGS:
                self.images[path.name].append(path)
                self.images[path.stem].append(path)

    def read(self) -> None:
        """Fills pictures, classes and dropped."""
        raise NotImplementedError

    def drop(self, where: object, why: str) -> None:
        self.dropped.append(Dropped(str(where), why))

    def annotation_files(self, ending: str) -> list[Path]:
        if self.source.is_file():
            return [self.source]
        return [path for path in _files(self.source) if path.suffix.lower() == ending]

    def find_image(self, name: str, beside: Path) -> Path | None:
        """The image that an annotation file names; None, with a reason, if there is none or several."""
        # Windows' tools write its separators.
        name = name.replace('\\', '/')
        for folder in (beside.parent, self.root, beside.parent / 'images', self.root / 'images'):
            path = Path(os.path.normpath(folder / name))
            if path.is_file() and path.suffix.lower() in IMAGE_ENDINGS and path.is_relative_to(self.root):
                return path
        found = self.images.get(Path(name).name) or self.images.get(Path(name).stem) or self.images.get(beside.stem)
        if not found:
            self.drop(beside if not name else f'{beside}: {name}', 'its image is missing')
        elif len(found) > 1:
            self.drop(f'{beside}: {name}', 'several images have its name')
        return found[0] if found and len(found) == 1 else None

    def add(self, path: Path, shapes: Iterable[Shape], stated: tuple[float, float] | None = None,
            split: str | None = None) -> None:
        """Adds a picture whose annotations say a size, if they do."""
        size = image_size(path)
        if size is None:
            self.drop(path, 'the image cannot be read')
            return
        if path in self.known:
            self.drop(path, 'the image has annotations already')
            return
        if stated and all(stated) and tuple(map(round, stated)) != size:
            self.drop(path, f'annotated at {stated[0]:g} x {stated[1]:g} pixels, but the image has {size[0]} x '
                            f'{size[1]}')
            return
        kept: list[Shape] = []
        for shape in shapes:
            cut = _cut(shape, *size)
            if cut is None:
                self.drop(f'{path}: {shape.label}', 'the object is outside the image, or smaller than a pixel')
            elif cut in kept:
                self.drop(f'{path}: {shape.label}', 'the object is there twice')
            else:
                kept.append(cut)
        self.known.add(path)
        self.pictures.append(Picture(path, *size, kept, split or _split_of(path.relative_to(self.root))))

    def read_xml(self, path: Path) -> ElementTree.Element | None:
        """The root of an XML file; None, with a reason, if it is none."""
        try:
            return ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, ValueError) as error:
            self.drop(path, f'the file cannot be read as XML: {error}')
            return None

    def read_json(self, path: Path) -> Any:
        """The content of a JSON file; None, with a reason, if it is none."""
        try:
            return json.loads(path.read_text(encoding='utf-8-sig'))
        except ValueError as error:
            self.drop(path, f'the file cannot be read as JSON: {error}')
            return None


class _Voc(_Reader):
    needs = 'one XML file per image, as LabelImg writes'

    def read(self) -> None:
        for path in self.annotation_files('.xml'):
            root = self.read_xml(path)
            if root is None:
                continue
            if root.tag != 'annotation':
                self.drop(path, f'the XML is no annotation of VOC: its root is <{root.tag}>')
                continue
            image = self.find_image(root.findtext('filename') or '', path)
            if image is None:
                continue
            shapes = []
            for node in root.iter('object'):
                label = (node.findtext('name') or '').strip()
                corners = [_number(node.findtext(f'bndbox/{key}')) for key in ('xmin', 'ymin', 'xmax', 'ymax')]
                if not label or None in corners:
                    self.drop(path, 'an object has no name, or no box with four numbers')
                    continue
                shapes.append(Shape(label, tuple(corners), None, (node.findtext('difficult') or '').strip() == '1'))
            size = [_number(root.findtext(f'size/{key}')) or 0 for key in ('width', 'height')]
            self.add(image, shapes, tuple(size))


class _Yolo(_Reader):
    needs = ('images, a .txt file of the same name for each in labels/ or beside it, and data.yaml, classes.txt or '
             '*.names')

    def read(self) -> None:
        names = self._names()
        images = sorted({path for found in self.images.values() for path in found})
        labels = {path: self._label_file(path) for path in images}
        if not any(labels.values()):
            return
        self.classes = [names[number] for number in sorted(names)]
        for path, label_file in labels.items():
            size = image_size(path)
            shapes = []
            for number, line in enumerate(label_file.read_text(encoding='utf-8').splitlines() if label_file else (), 1):
                shape = self._shape(line.split(), names, size or (1, 1))
                if isinstance(shape, Shape):
                    shapes.append(shape)
                elif shape:
                    self.drop(f'{label_file}:{number}', shape)
            self.add(path, shapes)

    def _names(self) -> dict[int, str]:
        for path in _files(self.root):
            if path.suffix in ('.yaml', '.yml'):
                try:
                    names = (yaml.safe_load(path.read_text(encoding='utf-8')) or {}).get('names')
                except (yaml.YAMLError, AttributeError):
                    continue
                if isinstance(names, list):
                    return dict(enumerate(map(str, names)))
                if isinstance(names, dict):
                    return {int(number): str(name) for number, name in names.items()}
            elif path.name in ('classes.txt', 'labels.txt') or path.suffix == '.names':
                lines = path.read_text(encoding='utf-8').splitlines()
                return dict(enumerate(line.strip() for line in lines if line.strip()))
        raise ValueError(f'{str(self.source)!r} does not name its classes: a source in YOLO format has data.yaml with '
                         'names, classes.txt or *.names')

    def _label_file(self, image: Path) -> Path | None:
        parts = list(image.parts)
        places = [image]
        for index in [index for index, part in enumerate(parts) if part == 'images'][::-1]:
            places.append(Path(*parts[:index], 'labels', *parts[index + 1:]))
        return next((path for path in (place.with_suffix('.txt') for place in places) if path.is_file()), None)

    def _shape(self, words: Sequence[str], names: dict[int, str], size: tuple[int, int]) -> Shape | str | None:
        """The object of a line; why it is left out, as a text; None for an empty line."""
        if not words:
            return None
        values = [_number(word) for word in words]
        if None in values or len(values) < 5:
            return 'the line is not a class and four or more numbers'
        if values[0] not in names:
            return f'class {words[0]} has no name'
        if max(map(abs, values[1:])) > 2:
            return 'coordinates are not relative to the size of the image'
        label, (width, height) = names[int(values[0])], size
        if len(values) <= 6:  # a box, or a box with a score
            x, y, w, h = values[1:5]
            return Shape(label, ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height))
        if len(values) % 2 == 0:
            return 'a polygon has an odd number of coordinates'
        return _polygon_shape(label, [[value * (height if index % 2 else width)
                                       for index, value in enumerate(values[1:])]])


class _LabelMe(_Reader):
    needs = 'one JSON file of LabelMe per image'

    def read(self) -> None:
        for path in self.annotation_files('.json'):
            content = self.read_json(path)
            if content is None:
                continue
            if not isinstance(content, dict) or not isinstance(content.get('shapes'), list):
                self.drop(path, 'the JSON is no annotation of LabelMe: it has no "shapes"')
                continue
            image = self.find_image(str(content.get('imagePath') or ''), path)
            if image is None:
                continue
            groups: dict[object, list[Shape]] = defaultdict(list)
            for number, node in enumerate(content['shapes']):
                try:
                    shape = self._shape(node)
                except (KeyError, TypeError, ValueError, IndexError) as error:
                    shape = f'a shape cannot be read: {type(error).__name__}: {error}'
                if isinstance(shape, str):
                    self.drop(path, shape)
                    continue
                group = node.get('group_id')
                groups[number if group is None else (group, shape.label)].append(shape)
            stated = (content.get('imageWidth') or 0, content.get('imageHeight') or 0)
            self.add(image, [_joined(shapes) for shapes in groups.values()], stated)

    def _shape(self, node: dict) -> Shape | str:
        label, kind, points = str(node['label']), node.get('shape_type') or 'polygon', node['points']
        if kind == 'rectangle':
            return Shape(label, _bounds(points))
        if kind == 'polygon' and len(points) > 2:
            return _polygon_shape(label, [[float(value) for point in points for value in point]])
        if kind == 'circle':
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            return _ellipse_shape(label, x, y, radius, radius)
        if kind == 'mask':
            content = np.frombuffer(base64.b64decode(node['mask']), np.uint8)
            mask = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
            x, y = map(round, points[0])
            return _mask_shape(label, mask > 0, x, y)
        return f'a {kind} has no area'


class _Cvat(_Reader):
    needs = 'the XML file of "CVAT for images"'

    def read(self) -> None:
        for path in self.annotation_files('.xml'):
            root = self.read_xml(path)
            if root is None:
                continue
            if root.tag != 'annotations':
                self.drop(path, f'the XML is not from CVAT: its root is <{root.tag}>')
                continue
            self.classes += [name.text.strip() for name in root.findall('./meta//labels/label/name') if name.text]
            if root.find('track') is not None:
                self.drop(path, 'tracks of a video have no images: export them as "CVAT for images"')
            for node in root.iter('image'):
                image = self.find_image(node.get('name') or '', path)
                if image is None:
                    continue
                shapes = []
                for child in node:
                    try:
                        shape = self._shape(child)
                    except (KeyError, TypeError, ValueError) as error:
                        shape = f'a {child.tag} cannot be read: {type(error).__name__}: {error}'
                    if isinstance(shape, str):
                        self.drop(f'{path}: {node.get("name")}', shape)
                    else:
                        shapes.append(shape)
                self.add(image, shapes, (_number(node.get('width')) or 0, _number(node.get('height')) or 0))

    def _shape(self, node: ElementTree.Element) -> Shape | str:
        label, get = node.attrib.get('label', ''), node.attrib
        if node.tag == 'box':
            x1, y1, x2, y2 = (float(get[key]) for key in ('xtl', 'ytl', 'xbr', 'ybr'))
            angle = math.radians(float(get.get('rotation', 0)))
            if not angle:
                return Shape(label, (x1, y1, x2, y2))
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            centre = np.array([x1 + x2, y1 + y2]) / 2
            corners = (np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) - centre) @ turn.T + centre
            return _polygon_shape(label, [corners.ravel().tolist()])
        if node.tag == 'polygon':
            return _polygon_shape(label, [[float(value) for point in get['points'].split(';')
                                           for value in point.split(',')]])
        if node.tag == 'ellipse':
            return _ellipse_shape(label, *(float(get[key]) for key in ('cx', 'cy', 'rx', 'ry')),
                                  math.radians(float(get.get('rotation', 0))))
        if node.tag == 'mask':
            runs = [int(value) for value in get['rle'].split(',')]
            width, height = int(get['width']), int(get['height'])
            flat = np.repeat(np.arange(len(runs)) % 2, runs)
            return _mask_shape(label, flat.reshape(height, width).astype(bool), int(get['left']), int(get['top']))
        return f'a {node.tag} has no area'


class _Coco(_Reader):
    needs = 'a JSON file with images, annotations and categories'

    def read(self) -> None:
        for path in self.annotation_files('.json'):
            content = self.read_json(path)
            if content is None:
                continue
            if not isinstance(content, dict) or not {'images', 'annotations', 'categories'} <= set(content):
                self.drop(path, 'the JSON is not in COCO format: it needs images, annotations and categories')
                continue
            try:
                self._read_file(path, content)
            except (KeyError, TypeError) as error:
                raise ValueError(f'{str(path)!r} is not in COCO format: {type(error).__name__}: {error}') from error

    def _read_file(self, path: Path, content: dict) -> None:
        names = {category['id']: str(category['name']) for category in content['categories']}
        self.classes += [names[key] for key in sorted(names)]
        shapes: dict[object, list[Shape]] = {image['id']: [] for image in content['images']}
        for node in content['annotations']:
            where = f'{path}: annotation {node.get("id")}'
            if node.get('image_id') not in shapes:
                self.drop(where, 'its image is not in the file')
            elif node.get('category_id') not in names:
                self.drop(where, 'its category is not in the file')
            else:
                shape = self._shape(node, names[node['category_id']])
                if isinstance(shape, str):
                    self.drop(where, shape)
                else:
                    shapes[node['image_id']].append(shape)
        split = _split_of(path.relative_to(self.root))
        for image in content['images']:
            found = self.find_image(image['file_name'], path)
            if found is not None:
                self.add(found, shapes[image['id']], (image.get('width') or 0, image.get('height') or 0), split)

    def _shape(self, node: dict, label: str) -> Shape | str:
        outline, left_out = node.get('segmentation') or None, bool(node.get('iscrowd', 0))
        if isinstance(outline, list):
            polygons = [list(map(float, polygon)) for polygon in outline
                        if isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0]
            if not polygons and 'bbox' not in node:
                return 'it has neither a box nor a polygon of three corners'
            outline = polygons or None
        elif isinstance(outline, dict) and isinstance(outline.get('counts'), list):
            outline = mask_utils.frPyObjects(outline, *outline['size'])
            outline['counts'] = outline['counts'].decode('ascii')
        if 'bbox' in node:
            numbers = [_number(value) for value in node['bbox']] if isinstance(node['bbox'], list) else []
            if len(numbers) != 4 or None in numbers:
                return 'its box is not four numbers'
            x, y, width, height = numbers
            return Shape(label, (x, y, x + width, y + height), outline, left_out)
        if isinstance(outline, dict):
            x, y, width, height = mask_utils.toBbox(outline).tolist()
            return Shape(label, (x, y, x + width, y + height), outline, left_out)
        return _polygon_shape(label, outline, left_out) if outline else 'it has neither a box nor a segmentation'


class _Via(_Reader):
    needs = 'a JSON file of VIA 1 or 2, a project or its annotations'

    def read(self) -> None:
        for path in self.annotation_files('.json'):
            content = self.read_json(path)
            if content is None:
                continue
            content = content.get('_via_img_metadata', content) if isinstance(content, dict) else {}
            entries = [entry for entry in content.values() if isinstance(entry, dict) and 'regions' in entry]
            if not entries:
                self.drop(path, 'the JSON is not from VIA: no entry has "regions"')
                continue
            regions = [self._regions(entry) for entry in entries]
            key = self._key(path, [region for found in regions for region in found])
            for entry, found in zip(entries, regions):
                image = self.find_image(str(entry.get('filename') or ''), path)
                if image is None:
                    continue
                shapes = []
                for region in found:
                    try:
                        shape = self._shape(region, key)
                    except (KeyError, TypeError, ValueError) as error:
                        shape = f'a region cannot be read: {type(error).__name__}: {error}'
                    if isinstance(shape, str):
                        self.drop(f'{path}: {entry["filename"]}', shape)
                    else:
                        shapes.append(shape)
                self.add(image, shapes)

    @staticmethod
    def _regions(entry: dict) -> list[dict]:
        regions = entry['regions']
        return [region for region in (regions.values() if isinstance(regions, dict) else regions or ())
                if isinstance(region, dict)]

    def _key(self, path: Path, regions: Sequence[dict]) -> str:
        keys = sorted({key for region in regions for key in region.get('region_attributes') or {}})
        if self.label_key:
            if regions and self.label_key not in keys:
                raise ValueError(f'no region of {str(path)!r} has the attribute {self.label_key!r}; there are {keys}')
            return self.label_key
        usual = [key for key in ('label', 'class', 'name', 'type', 'category') if key in keys]
        if len(keys) == 1 or usual:
            return keys[0] if len(keys) == 1 else usual[0]
        if keys:
            raise ValueError(f'the regions of {str(path)!r} have the attributes {keys}: say which names the class')
        return 'label'

    @staticmethod
    def _shape(region: dict, key: str) -> Shape | str:
        label = (region.get('region_attributes') or {}).get(key)
        if isinstance(label, dict):  # checkboxes
            ticked = [name for name, value in label.items() if value]
            label = ticked[0] if len(ticked) == 1 else None
        if not label:
            return f'a region has no class in its attribute {key!r}'
        label, shape = str(label), region['shape_attributes']
        if shape['name'] == 'rect':
            return Shape(label, (shape['x'], shape['y'], shape['x'] + shape['width'], shape['y'] + shape['height']))
        if shape['name'] == 'polygon':
            return _polygon_shape(label, [[float(value) for point in zip(shape['all_points_x'], shape['all_points_y'])
                                           for value in point]])
        if shape['name'] == 'circle':
            return _ellipse_shape(label, shape['cx'], shape['cy'], shape['r'], shape['r'])
        if shape['name'] == 'ellipse':
            return _ellipse_shape(label, shape['cx'], shape['cy'], shape['rx'], shape['ry'], shape.get('theta', 0.))
        return f'a {shape["name"]} has no area'


READERS: dict[str, Callable[[Path, str | None], _Reader]] = dict(
    voc=_Voc, yolo=_Yolo, labelme=_LabelMe, cvat=_Cvat, coco=_Coco, via=_Via)


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height after a turn by the EXIF data, from the header alone; None if it is no image."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except (OSError, ValueError, SyntaxError):
        return None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob('*')) if path.is_file() and not path.name.startswith('.'))


def _split_of(path: Path) -> str | None:
    """The split that a folder or a file is called by."""
    words = {word for part in path.with_suffix('').parts for word in re.split(r'[^a-z]+', part.lower())}
    found = [split for split, names in (('train', {'train', 'training'}), ('val', {'val', 'valid', 'validation'}),
                                        ('test', {'test', 'testing'})) if words & names]
    return found[0] if len(found) == 1 else None


def _number(text: object) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _bounds(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    x, y = zip(*points)
    return float(min(x)), float(min(y)), float(max(x)), float(max(y))


def _polygon_shape(label: str, polygons: list[list[float]], left_out: bool = False) -> Shape | str:
    if any(len(polygon) < 6 for polygon in polygons):
        return 'a polygon has less than three corners'
    points = [point for polygon in polygons for point in zip(polygon[::2], polygon[1::2])]
    return Shape(label, _bounds(points), polygons, left_out)


def _ellipse_shape(label: str, x: float, y: float, rx: float, ry: float, angle: float = 0.) -> Shape:
    around = np.arange(CORNERS) * 2 * np.pi / CORNERS
    points = np.stack((rx * np.cos(around), ry * np.sin(around)), axis=1)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return _polygon_shape(label, [(points @ turn.T + (x, y)).ravel().tolist()])


def _mask_shape(label: str, mask: np.ndarray, x: int, y: int) -> Shape | str:
    """An object from a mask (H, W) whose upper left pixel is at (x, y)."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    polygons = [contour.ravel().astype(float).tolist() for contour in found if len(contour) > 2]
    return _polygon_shape(label, polygons) if polygons else 'a mask has no area'


def _joined(shapes: Sequence[Shape]) -> Shape:
    """One object from shapes that belong together."""
    if len(shapes) == 1:
        return shapes[0]
    corners = [point for shape in shapes for point in (shape.box[:2], shape.box[2:])]
    outlines = [polygon for shape in shapes for polygon in shape.outline or [rectangle(shape.box)]]
    return Shape(shapes[0].label, _bounds(corners), outlines)


def rectangle(box: Sequence[float]) -> list[float]:
    """The polygon of a box."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _cut(shape: Shape, width: int, height: int) -> Shape | None:
    """A shape inside the image; None if less than a pixel is left."""
    x1, y1, x2, y2 = shape.box
    limits = (width, height)
    (x1, x2), (y1, y2) = ((min(max(low, 0.), limit), min(max(high, 0.), limit))
                          for (low, high), limit in zip(((x1, x2), (y1, y2)), limits))
    if x2 - x1 < 1 or y2 - y1 < 1:
        return None
    outline = shape.outline
    if isinstance(outline, list):
        outline = [[min(max(value, 0.), limits[index % 2]) for index, value in enumerate(polygon)]
                   for polygon in outline]
    return shape._replace(box=(x1, y1, x2, y2), outline=outline)
