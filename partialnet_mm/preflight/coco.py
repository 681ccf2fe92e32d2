# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of data sets in COCO format."""
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .findings import Finding
from .images import check_image, sample

#: Number of pixels by which rounding may move a box or a mask over the border.
MARGIN = 1.
#: Errors that mmdet can train with, and the fraction of all annotations up to which they do not stop a training: few
#: are the noise of a large data set, many are a mistake.
TOLERATED = ('box outside', 'mask outside', 'mask malformed')
TOLERATED_FRACTION = 1e-3


def check_coco(ann_file: str,
               image_folder: str,
               classes: Sequence[str] | None = None,
               masks: bool = True,
               images: int | None = 200) -> list[Finding]:
    """Checks an annotation file and its images.

    Args:
        ann_file: The annotation file.
        image_folder: Folder that the images' file names are relative to.
        classes: Classes that the training uses, None for all of the file. Defaults to None.
        masks: Whether the training needs masks. Defaults to True.
        images: Number of images to decode, evenly spread over the file, None for all. Whether the file exists is
            checked for every image. Defaults to 200.

    Returns:
        Errors and notes.
    """
    content = _read(ann_file)
    if isinstance(content, Finding):
        return [content]
    findings = list(_CocoChecks(ann_file, image_folder, content, classes, masks, images).run())
    return _tolerate(findings, len(content['annotations']))


def _tolerate(findings: list[Finding], annotations: int) -> list[Finding]:
    """Turns errors of a tolerated kind into notes if they are few among all annotations."""
    counts = Counter(finding.kind for finding in findings)
    few = [kind for kind in TOLERATED if counts[kind] <= TOLERATED_FRACTION * annotations]
    return [finding._replace(note=True) if finding.kind in few else finding for finding in findings]


def _read(ann_file: str) -> Any:
    if not os.path.isfile(ann_file):
        return Finding('annotations missing', ann_file, '', 'the file does not exist')
    if os.path.getsize(ann_file) == 0:
        return Finding('annotations empty', ann_file, '', 'the file has 0 bytes')
    try:
        with open(ann_file, encoding='utf-8') as file:
            content = json.load(file)
    except json.JSONDecodeError as error:
        return Finding('annotations not JSON', ann_file, f'line {error.lineno}, column {error.colno}',
                       f'{error.msg}; the file may be truncated ({os.path.getsize(ann_file)} bytes)')
    except UnicodeDecodeError as error:
        return Finding('annotations not JSON', ann_file, f'byte {error.start}', 'it is not UTF-8 text')
    if not isinstance(content, dict):
        return Finding('annotations not COCO', ann_file, '', f'it holds a {type(content).__name__}, not an object')
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content.get(key), list):
            return Finding('annotations not COCO', ann_file, key, 'this list is missing')
        for index, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                return Finding('annotations not COCO', ann_file, f'{key}[{index}]', f'{entry!r} is not an object')
    return content


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass
class _CocoChecks:
    """The checks of one file; later checks use the images and categories that earlier ones found."""

    ann_file: str
    image_folder: str
    content: dict[str, list[dict]]
    classes: Sequence[str] | None
    masks: bool
    images: int | None
    image_by_id: dict[Any, dict] = field(default_factory=dict)
    name_by_category: dict[Any, Any] = field(default_factory=dict)

    def run(self) -> Iterator[Finding]:
        yield from self._check_categories()
        yield from self._check_images()
        yield from self._check_annotations()
        yield from self._check_files()

    def _finding(self, kind: str, where: str, text: str, note: bool = False) -> Finding:
        return Finding(kind, self.ann_file, where, text, note)

    def _check_categories(self) -> Iterator[Finding]:
        names: Counter = Counter()
        for index, category in enumerate(self.content['categories']):
            if 'id' not in category or not isinstance(category.get('name'), str):
                yield self._finding('category incomplete', f'categories[{index}]',
                                    f'it needs id and name, but is {category!r}')
                continue
            if category['id'] in self.name_by_category:
                yield self._finding('category id twice', f'categories[{index}]',
                                    f'{category["name"]!r} has the id {category["id"]!r} of '
                                    f'{self.name_by_category[category["id"]]!r}')
            self.name_by_category[category['id']] = category['name']
            names[category['name']] += 1
        for name, count in names.items():
            if count > 1:
                yield self._finding('category name twice', f'category {name!r}', f'{count} categories have this name')
        missing = [name for name in self.classes or () if name not in names]
        if missing:
            yield self._finding('class without category', 'categories',
                                f'the config trains {missing}, which are not among {sorted(names)}')
        unused = [name for name in names if self.classes is not None and name not in self.classes]
        if unused:
            yield self._finding('category not trained', 'categories', f'the config does not train {unused}', note=True)

    def _check_images(self) -> Iterator[Finding]:
        if not self.content['images']:
            yield self._finding('no images', 'images', 'the list is empty')
        paths: dict[Any, Any] = {}
        for index, image in enumerate(self.content['images']):
            where = f'images[{index}]'
            lacking = [key for key in ('id', 'file_name', 'width', 'height') if key not in image]
            if lacking:
                yield self._finding('image incomplete', where, f'it has no {", ".join(lacking)}')
                continue
            where = f'image {image["id"]!r} ({image["file_name"]})'
            if image['id'] in self.image_by_id:
                yield self._finding('image id twice', where,
                                    f'{self.image_by_id[image["id"]]["file_name"]!r} has the same id')
            if image['file_name'] in paths:
                yield self._finding('image file twice', where, f'image {paths[image["file_name"]]!r} is the same file')
            if not all(_is_number(image[key]) and image[key] > 0 for key in ('width', 'height')):
                yield self._finding('image size impossible', where,
                                    f'width {image["width"]!r}, height {image["height"]!r}')
                continue
            self.image_by_id[image['id']] = image
            paths[image['file_name']] = image['id']

    def _check_annotations(self) -> Iterator[Finding]:
        ids: Counter = Counter()
        plain: Counter = Counter()
        crowd: Counter = Counter()
        for index, annotation in enumerate(self.content['annotations']):
            lacking = [key for key in ('id', 'image_id', 'category_id', 'bbox') if key not in annotation]
            if lacking:
                yield self._finding('annotation incomplete', f'annotations[{index}]', f'it has no {", ".join(lacking)}')
                continue
            image = self.image_by_id.get(annotation['image_id'])
            where = f'annotation {annotation["id"]!r} of image {annotation["image_id"]!r}'
            if image is None:
                yield self._finding('annotation without image', where, 'no usable image has this id')
                continue
            where += f' ({image["file_name"]})'
            ids[annotation['id']] += 1
            if ids[annotation['id']] == 2:
                yield self._finding('annotation id twice', where, 'another annotation has the same id')
            if annotation['category_id'] not in self.name_by_category:
                yield self._finding('annotation without category', where,
                                    f'category {annotation["category_id"]!r} is not among '
                                    f'{sorted(self.name_by_category, key=str)}')
                continue
            iscrowd = annotation.get('iscrowd', 0)
            if iscrowd not in (0, 1):
                yield self._finding('iscrowd', where, f'it must be 0 or 1, but is {iscrowd!r}')
            if 'area' not in annotation or not _is_number(annotation['area']):
                yield self._finding('area', where, f'it must be a number, but is {annotation.get("area")!r}')
            elif annotation['area'] <= 0:
                yield self._finding('area', where, f'it is {annotation["area"]!r}: mmdet ignores it', note=True)
            yield from self._check_box(annotation['bbox'], image, where)
            if self.masks:
                yield from self._check_mask(annotation.get('segmentation'), image, where)
            if self.classes is None or self.name_by_category[annotation['category_id']] in self.classes:
                (crowd if iscrowd else plain)[annotation['image_id']] += 1
        if not plain:
            yield self._finding('nothing to learn', 'annotations',
                                'all annotations are crowds, or of classes that are not trained')
        empty = [i for i in self.image_by_id if i not in plain and i not in crowd]
        crowd_only = [i for i in crowd if i not in plain]
        for kind, found in (('images without objects', empty), ('images with crowds only', crowd_only)):
            if found:
                names = [self.image_by_id[i]['file_name'] for i in found[:3]]
                yield self._finding(kind, 'images', f'{len(found)} of {len(self.image_by_id)}, first {names}', True)

    def _check_box(self, box: Any, image: dict, where: str) -> Iterator[Finding]:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            yield self._finding('box malformed', where, f'bbox must be [x, y, width, height], but is {box!r}')
            return
        x, y, width, height = box
        size = f'the image is {image["width"]} x {image["height"]}'
        if width < 0 or height < 0:
            yield self._finding('box negative', where, f'bbox {box} has a negative size; is it [x1, y1, x2, y2]?')
        elif width < 1 or height < 1:
            yield self._finding('box tiny', where, f'bbox {box} has no pixel: mmdet ignores it', note=True)
        elif (x < -MARGIN or y < -MARGIN or x + width > image['width'] + MARGIN
              or y + height > image['height'] + MARGIN):
            yield self._finding('box outside', where, f'bbox {box} leaves the image; {size}')

    def _check_mask(self, mask: Any, image: dict, where: str) -> Iterator[Finding]:
        if not mask:
            yield self._finding('mask missing', where, f'segmentation is {mask!r}; the training needs masks')
        elif isinstance(mask, dict):
            yield from self._check_rle(mask, image, where)
        elif isinstance(mask, list):
            for polygon in mask:
                yield from self._check_polygon(polygon, image, where)
        else:
            yield self._finding('mask malformed', where, f'segmentation is a {type(mask).__name__}')

    def _check_polygon(self, polygon: Any, image: dict, where: str) -> Iterator[Finding]:
        if not isinstance(polygon, list) or not all(_is_number(value) for value in polygon):
            yield self._finding('mask malformed', where, f'a polygon must be a list of numbers, but is '
                                f'{str(polygon)[:60]}')
        elif len(polygon) < 6 or len(polygon) % 2:
            yield self._finding('mask malformed', where,
                                f'a polygon needs x and y of at least 3 points, but has {len(polygon)} numbers')
        else:
            xs, ys = polygon[::2], polygon[1::2]
            if (min(xs) < -MARGIN or min(ys) < -MARGIN or max(xs) > image['width'] + MARGIN
                    or max(ys) > image['height'] + MARGIN):
                yield self._finding('mask outside', where,
                                    f'a polygon spans x {min(xs):g}..{max(xs):g}, y {min(ys):g}..{max(ys):g}; the '
                                    f'image is {image["width"]} x {image["height"]}')

    def _check_rle(self, mask: dict, image: dict, where: str) -> Iterator[Finding]:
        size, counts = mask.get('size'), mask.get('counts')
        if size != [image['height'], image['width']]:
            yield self._finding('mask size', where, f'its size is {size!r}, the image is [{image["height"]}, '
                                f'{image["width"]}] (height, width)')
        elif isinstance(counts, list):
            if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
                yield self._finding('mask malformed', where, f'its counts do not add up to {size[0]} x {size[1]}')
        elif not isinstance(counts, str) or not counts:
            yield self._finding('mask malformed', where, f'counts must be a list or a string, but is {counts!r}')

    def _check_files(self) -> Iterator[Finding]:
        if not os.path.isdir(self.image_folder):
            yield Finding('image folder missing', self.image_folder, '', 'the folder does not exist')
            return
        entries = list(self.image_by_id.values())
        decoded = {id(image) for image in sample(entries, self.images)}
        for image in entries:
            path = os.path.join(self.image_folder, str(image['file_name']))
            if id(image) in decoded:
                yield from check_image(path, (image['width'], image['height']))
            elif not os.path.exists(path):
                yield Finding('image missing', path, '', 'the file does not exist')
