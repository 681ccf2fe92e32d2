# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of data sets in COCO format.

What is an error follows from what mmdet's CocoDataset, its pipeline and CocoMetric do with a value: an error ends a
training, or leaves nothing to learn or to measure. What they handle, such as a box without a pixel that is left out, is
a note, and an error only where it is most of the data.
"""
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .coco_file import MALFORMED, NONE, RLE, UNUSABLE, CocoFile, NotCocoError
from .files import Files
from .findings import Finding, listed
from .images import check_image, orientation, sample

#: Fraction of objects above which what mmdet leaves out, or cannot find, is an error.
MOST = 0.5
#: A predicted box that is clipped to the image must have this IoU with the true one to count for AP at all thresholds.
FULL_IOU = 0.95
#: Number of measured objects from which on one that is never found changes no metric.
MANY = 1000


class CocoUse(NamedTuple):
    """What a split does with a data set."""

    learns: bool = True  # from its objects
    masks: bool = True  # the pipeline loads them
    bitmaps: bool = True  # as bitmaps, LoadAnnotations(poly2mask=True)
    metrics: tuple[str, ...] = ('bbox', 'segm')  # of CocoMetric, with the file as its ann_file
    filter_cfg: dict | None = None  # of a training set
    indices: int | Sequence[int] | None = None  # the images of the data set, None for all
    maps: tuple[str, str] | None = None  # folder and suffix of semantic label images that the pipeline loads
    writes: bool = False  # results with the ids of its categories, CocoMetric(format_only=True)


class CocoCheck(NamedTuple):
    """What the checks of other parts of a config need to know of a data set."""

    ann_file: str
    findings: list[Finding]
    classes: tuple[str, ...]  # in the order of their labels
    images: dict[Any, Any]  # file names by id


def check_coco(ann_file: str | CocoFile,
               image_folder: str,
               classes: Sequence[str] | None = None,
               masks: bool = True,
               images: int | None = 200) -> list[Finding]:
    """Checks an annotation file and its images, for training and for measuring.

    Args:
        ann_file: The annotation file, or what :func:`read_coco` has read of it.
        image_folder: Folder that the images' file names are relative to.
        classes: Classes that the training uses, None for all of the file. Defaults to None.
        masks: Whether the training needs masks. Defaults to True.
        images: Number of images to decode, evenly spread over the file, None for all. Whether the file exists is
            checked for every image. Defaults to 200.

    Returns:
        Errors and notes.
    """
    use = CocoUse(masks=masks, metrics=('bbox', 'segm') if masks else ('bbox', ))
    content = read_coco(ann_file) if isinstance(ann_file, str) else ann_file
    if isinstance(content, Finding):
        return [content]
    return check_coco_file(content, image_folder, classes, use, images, Files()).findings


def read_coco(ann_file: str) -> CocoFile | Finding:
    """Reads an annotation file, or returns why mmdet cannot."""
    if not os.path.isfile(ann_file):
        return Finding('annotations missing', ann_file, '', 'the file does not exist')
    if os.path.getsize(ann_file) == 0:
        return Finding('annotations empty', ann_file, '', 'the file has 0 bytes')
    try:
        return CocoFile(ann_file)
    except NotCocoError as error:
        return Finding(error.kind, ann_file, error.where, str(error))


def check_coco_file(content: CocoFile,
                    image_folder: str,
                    classes: Sequence[str] | None,
                    use: CocoUse,
                    images: int | None,
                    files: Files | None,
                    load: Callable[[dict], dict | None] | None = None) -> CocoCheck:
    """Checks a data set for one use; see :func:`check_coco`.

    ``load`` loads an image as the pipeline does, and ``files`` answers whether files exist; it is None where they are
    at an address.
    """
    checks = _Checks(content, image_folder, classes, use, images, files, load)
    return CocoCheck(content.path, list(checks.run()), tuple(checks.labels.values()), checks.file_names())


class _Checks:
    """The checks of one file; later checks use the images and categories that earlier ones found."""

    def __init__(self, content: CocoFile, image_folder: str, classes: Sequence[str] | None, use: CocoUse,
                 images: int | None, files: Files | None, load: Callable[[dict], dict | None] | None) -> None:
        self.content, self.image_folder, self.classes, self.use = content, image_folder, classes, use
        self.sampled, self.files, self.load = images, files, load
        self.file = content.path
        self.kept = np.zeros(0, int)  # indices of the images that the data set has
        #: As mmdet numbers them: categories with a name among the classes, in the order of the file.
        self.labels = {key: name for key, name, lacking in content.categories
                       if not lacking and (classes is None or name in classes)}
        self.image_index = {image[0]: i for i, image in enumerate(content.images)}  # the last of an id, as pycocotools

    def file_names(self) -> dict[Any, Any]:
        return {key: self.content.images[i][1] for key, i in self.image_index.items()}

    def run(self) -> Iterator[Finding]:
        known = yield from self._check_keys()
        if known:
            yield from self._check_categories()
            yield from self._check_images()
            yield from self._check_objects()
        yield from self._check_files()

    def _finding(self, kind: str, where: str, text: str, note: bool = False) -> Finding:
        return Finding(kind, self.file, where, text, note)

    # Images and categories

    def _check_keys(self) -> Iterator[Finding]:
        """Lists and keys that pycocotools and mmdet read whatever the use; returns whether all are there."""
        content, known = self.content, True
        for key in ('images', 'categories'):
            if key not in content.lists:
                known = False
                yield self._finding('annotations not COCO', key, 'this list is missing')
        for index, (key, name, lacking) in enumerate(content.categories):
            if lacking or key is None:
                yield self._finding('category incomplete', f'categories[{index}]',
                                    f'it needs id and name, but has id {key!r}, name {name!r}')
        for index, (key, name, _, _, lacking) in enumerate(content.images):
            where = f'images[{index}]'
            if lacking:
                yield self._finding('image incomplete', where, f'it has no {", ".join(lacking)}')
            elif not isinstance(name, str) or key is None:
                yield self._finding('image incomplete', where, f'id {key!r}, file_name {name!r}')
        if not content.images and 'images' in content.lists:
            yield self._finding('no images', 'images', 'the list is empty')
        return known

    def _check_categories(self) -> Iterator[Finding]:
        if not (self.use.learns or self.use.metrics or self.use.writes):
            return
        names = Counter(name for _, name, _ in self.content.categories if isinstance(name, str))
        first: dict[Any, Any] = {}
        for index, (key, name, _) in enumerate(self.content.categories):
            if key in first and key in self.labels:
                yield self._finding('category id twice', f'categories[{index}]',
                                    f'{name!r} has the id {key!r} of {first[key]!r}')
            first.setdefault(key, name)
        used = set(self.content.category_ids)
        beyond = set(list(self.labels)[len(self.classes or set(self.labels.values())):]) & used
        for name, count in names.items():
            if count > 1 and (self.classes is None or name in self.classes):
                yield self._finding('category name twice', f'category {name!r}', f'{count} categories have this name: '
                                    f'mmdet gives each a label, {len(self.labels)} in all', note=not beyond)
        missing = [name for name in self.classes or () if name not in names]
        if missing:
            yield self._finding('class without category', 'categories',
                                f'the config trains {missing}, which are not among {sorted(names)}')
        unused = [name for name in names if self.classes is not None and name not in self.classes]
        if unused:
            yield self._finding('category not trained', 'categories', f'the config does not train {unused}', note=True)
        order = list(self.labels.values())
        if self.classes is not None and not missing and order != list(self.classes) and not isinstance(
                self.classes, str) and sorted(order) == sorted(self.classes):
            yield self._finding('order of classes', 'categories', f'mmdet numbers classes in the order of the file, '
                                f'{order}, but names predictions by the config, {list(self.classes)}', note=True)
        if self.use.metrics:
            for what, keys in (('image', self.image_index), ('category', self.labels)):
                if len({isinstance(key, str) for key in keys}) > 1:
                    yield self._finding('ids of two types', f'{what} ids', 'some are text and some are numbers: '
                                        'CocoMetric finds none of them again')

    def _check_images(self) -> Iterator[Finding]:
        ids: dict[Any, tuple] = {}
        paths: dict[Any, Any] = {}
        for image in self.content.images:
            key, name, width, height, lacking = image
            if lacking:
                continue
            where = f'image {key!r} ({name})'
            if key in ids:
                yield self._finding('image id twice', where, f'{ids[key][1]!r} has the same id; mmdet reads only the '
                                    'last one, with the objects of all', note=ids[key] == image)
            elif name in paths:
                yield self._finding('image file twice', where, f'image {paths[name]!r} is the same file', note=True)
            ids[key], paths[name] = image, key

    def _sizes(self) -> np.ndarray:
        """(images + 1, 2), width and height; NaN where they are no numbers, and for annotations without image."""
        sizes = np.full((len(self.content.images) + 1, 2), np.nan)
        for i, (_, _, width, height, _) in enumerate(self.content.images):
            if _is_number(width) and _is_number(height):
                sizes[i] = width, height
        return sizes

    def _kept(self, owners: np.ndarray) -> np.ndarray:
        """Indices of the images that the data set has after its filter, in mmdet's order."""
        order = [i for i in self.image_index.values() if not self.content.images[i][4]]
        if self.use.filter_cfg is not None:
            with_objects = set(owners.tolist())
            filter_empty = self.use.filter_cfg.get('filter_empty_gt', False)
            sizes, least = self._sizes(), self.use.filter_cfg.get('min_size', 0)
            order = [i for i in order if (i in with_objects or not filter_empty) and sizes[i].min() >= least]
        indices = self.use.indices
        if isinstance(indices, int):
            order = order[:indices] if indices >= 0 else order[indices:]
        elif indices is not None:
            order = [order[i] for i in indices if -len(order) <= i < len(order)]
        return np.array(order, int)

    # Objects

    def _where(self, row: int) -> str:
        content = self.content
        index = self.image_index.get(content.image_ids[row])
        name = '' if index is None else f' ({content.images[index][1]})'
        return f'annotation {content.ids[row]!r} of image {content.image_ids[row]!r}{name}'

    def _rows(self, kind: str, rows: np.ndarray, text: str | Callable[[int], str], note: bool = False) -> list[Finding]:
        return listed(kind, self.file, np.flatnonzero(rows).tolist(), self._where,
                      text if callable(text) else lambda row: text, note)

    def _problems(self, kind: str, rows: np.ndarray | None = None, note: bool = False) -> list[Finding]:
        """Findings of a kind that was found on reading, on some rows."""
        texts = self.content.problems.get(kind, {})
        found = self.content.rows(kind)
        return self._rows(kind, found if rows is None else found & rows, texts.__getitem__, note)

    def _check_objects(self) -> Iterator[Finding]:
        content, use = self.content, self.use
        yield from listed('annotation incomplete', self.file, list(content.problems.get('annotation incomplete', ())),
                          lambda row: f'annotations[{row}]', content.problems.get('annotation incomplete', {}).get)
        owner = np.array([self.image_index.get(key, -1) for key in content.image_ids], int)
        has_image = (owner >= 0) & ~content.rows('annotation incomplete')
        label_known = np.array([key in self.labels for key in content.category_ids], bool)
        self.kept = kept = self._kept(owner[has_image & label_known])
        in_use = has_image & np.isin(owner, kept)
        if not len(kept) and content.images:
            yield self._finding('no images', 'images', f'the filter of the data set, {dict(use.filter_cfg or {})}, '
                                'leaves none')
        yield from self._check_ids(has_image)
        if not use.learns and not use.metrics and not (has_image & ~content.ignored).any():
            return

        # What CocoDataset reads of every object on loading
        read = has_image & ~content.ignored
        sizes = self._sizes()
        with_objects = np.zeros(len(content.images), bool)
        with_objects[owner[read]] = True
        complete = np.array([not image[4] for image in content.images], bool)
        impossible = ~(sizes[:-1] > 0).all(1) & with_objects
        if use.filter_cfg is not None:  # which compares all sizes
            impossible |= np.isnan(sizes[:-1]).any(1)
        yield from listed('image size impossible', self.file, np.flatnonzero(impossible & complete).tolist(),
                          self._image_where, lambda i: 'width {!r}, height {!r}'.format(*content.images[i][2:4]))
        yield from self._problems('box malformed', read)
        left, top, width, height = content.boxes.T
        across, down = sizes[owner].T
        with np.errstate(invalid='ignore', over='ignore'):
            inside = (np.clip(np.minimum(left + width, across) - np.maximum(left, 0), 0, None)
                      * np.clip(np.minimum(top + height, down) - np.maximum(top, 0), 0, None))
            shown = read & (inside > 0)
            yield from self._problems('area', shown)
            odd = read & ~np.isfinite(content.boxes).all(1) & ~content.rows('box malformed')
            yield from self._rows('box malformed', odd, lambda row: f'bbox is {self._box(row)}')

            known = in_use & label_known
            negative = (width < 0) | (height < 0)
            tiny = ((width < 1) | (height < 1)) & ~negative
            beyond = ~negative & ~tiny & ~(inside > 0)
            no_area = ~negative & ~tiny & ~beyond & (content.areas <= 0)
            part = inside / (width * height)
        dropped = negative | tiny | beyond | no_area
        boxes = known & ~content.rows('box malformed') & ~odd
        plain = boxes & ~content.crowd & ~content.ignored
        loaded = boxes & ~content.ignored & ~dropped  # what the pipeline gets
        learned = plain & ~dropped
        if use.learns or use.metrics or use.masks:
            ending = self._consequence()
            relative = plain.any() and (content.boxes[plain] <= 1.5).all()
            for kind, rows, text in (('box negative', negative, 'has a negative size; is it [x1, y1, x2, y2]?'),
                                     ('box tiny', tiny, 'has no pixel'),
                                     ('box beyond', beyond, 'has no pixel of the image'),
                                     ('area zero', no_area, '')):
                yield from self._rows(kind, plain & rows, lambda row, text=text: (
                    f'bbox {self._box(row)} {text}' if text else f'its area is {content.areas[row]:g}') + ending, True)
            outside = learned & (part < FULL_IOU)
            far = (learned & (part < 0.5)).sum() > MOST * max(1, learned.sum())
            yield from self._rows('box outside', outside, lambda row: (
                f'bbox {self._box(row)} leaves the image; the image is {across[row]:g} x {down[row]:g}'), note=not far)
            yield from self._problems('iscrowd', has_image & (content.crowd | bool(use.metrics)))
            yield from self._problems('iscrowd neither 0 nor 1', boxes, note=True)
            measures_masks = has_image & label_known if 'segm' in use.metrics else np.zeros(len(owner), bool)
            yield from self._check_masks(loaded & use.masks | measures_masks, sizes[owner])
            if use.masks:
                yield from self._problems('mask unusable', loaded, note=True)
                rles = content.masks == RLE
                if not use.bitmaps:
                    yield from self._rows('mask unusable', loaded & rles, 'LoadAnnotations(poly2mask=False) leaves out '
                                          'RLE masks', note=True)
                learned = learned & ~np.isin(content.masks, (UNUSABLE, MALFORMED, NONE)) & (use.bitmaps | ~rles)
            lost = (plain & dropped).sum()
            if use.learns and not learned.any():
                yield self._finding('nothing to learn', 'annotations', self._reasons({
                    'without a known image': ~has_image,
                    'on images that are filtered out': has_image & ~in_use,
                    'of classes that are not trained': in_use & ~label_known,
                    'crowds or ignored': boxes & (content.crowd | content.ignored),
                    'of negative size': plain & negative,
                    'with boxes of no pixel': plain & tiny,
                    'with boxes beyond the image': plain & beyond,
                    'with area 0': plain & no_area,
                    'without a usable mask': plain & ~dropped & ~learned}, relative))
            elif lost > MOST * plain.sum():
                yield self._finding('most objects are lost', 'annotations', f'mmdet leaves out {lost} of {plain.sum()} '
                                    'objects: their boxes or areas have no pixel' + _RELATIVE * relative)
        if use.metrics:
            yield from self._check_measured(has_image & label_known)
        if use.learns:
            yield from self._check_images_without(owner, boxes)

    def _consequence(self) -> str:
        """What becomes of an object that mmdet leaves out."""
        parts = ['mmdet does not train it'] * self.use.learns + ['the metric counts it as missed'] * bool(
            self.use.metrics)
        return ': ' * bool(parts) + ', '.join(parts)

    def _reasons(self, reasons: dict[str, np.ndarray], relative: bool) -> str:
        counts = [f'{rows.sum()} are {name}' for name, rows in reasons.items() if rows.any()]
        return (f'of {len(self.content.ids)} objects, ' + ', '.join(counts) if counts else 'there are no objects') \
            + _RELATIVE * bool(relative)

    def _box(self, row: int) -> list[float]:
        return _plain(self.content.boxes[row])

    def _image_where(self, index: int) -> str:
        return 'image {!r} ({})'.format(*self.content.images[index][:2])

    def _check_ids(self, has_image: np.ndarray) -> Iterator[Finding]:
        content = self.content
        strangers = np.array([key not in self.image_index for key in content.image_ids], bool)
        strangers &= ~content.rows('annotation incomplete')
        yield from self._rows('annotation without image', strangers, 'no image has this id: mmdet does not read it',
                              note=True)
        categories = {key for key, *_ in content.categories}
        unknown = has_image & np.array([key not in categories for key in content.category_ids], bool)
        yield from self._rows('annotation without category', unknown, lambda row: (
            f'category {content.category_ids[row]!r} is not among {sorted(categories, key=str)}'), note=True)
        counts = Counter(content.ids)
        if len(counts) < len(content.ids):
            read = {key for key, used in zip(content.ids, has_image.tolist()) if used}
            seen: set[Any] = set()
            twice = np.zeros(len(content.ids), bool)
            for row, key in enumerate(content.ids):
                twice[row] = key in seen and key in read
                seen.add(key)
            yield from self._rows('annotation id twice', twice, 'another annotation has the same id')

    def _check_masks(self, needed: np.ndarray, image: np.ndarray) -> Iterator[Finding]:
        """Masks of the objects that the pipeline gets or the metric measures; ``image`` has the size of each image."""
        content = self.content
        yield from self._rows('mask missing', needed & (content.masks == NONE), 'it has no segmentation, but masks are '
                              'loaded or measured')
        yield from self._problems('mask malformed', needed)
        wrong = np.zeros(len(needed), bool)
        for row, size in content.rle_sizes.items():
            wrong[row] = list(size) != image[row][::-1].tolist()
        yield from self._rows('mask size', needed & wrong, lambda row: (
            f'its size is {content.rle_sizes[row]}, the image is {_plain(image[row][::-1])} (height, width)'))
        across, down = image.T
        x1, y1, x2, y2 = content.extents.T
        left, top, width, height = content.boxes.T
        with np.errstate(invalid='ignore'):
            outside = needed & ((x1 < -1) | (y1 < -1) | (x2 > across + 1) | (y2 > down + 1))
            common = (np.clip(np.minimum(x2, left + width) - np.maximum(x1, left), 0, None)
                      * np.clip(np.minimum(y2, top + height) - np.maximum(y1, top), 0, None))
            apart = needed & (common < 0.1 * width * height)
        yield from self._rows('mask outside', outside, lambda row: (
            f'its polygons span x {x1[row]:g}..{x2[row]:g}, y {y1[row]:g}..{y2[row]:g}; the image is {across[row]:g} x '
            f'{down[row]:g}'), note=True)
        most = apart.sum() > MOST * max(1, (needed & ~np.isnan(x1)).sum())
        yield from self._rows('mask apart from box', apart, lambda row: (
            f'its polygons span x {x1[row]:g}..{x2[row]:g}, y {y1[row]:g}..{y2[row]:g}, its bbox is '
            f'{self._box(row)}'), note=not most)

    def _check_measured(self, measured: np.ndarray) -> Iterator[Finding]:
        """Objects of the file as CocoMetric reads them, which does not leave out what CocoDataset does."""
        content = self.content
        if not measured.any():
            yield self._finding('nothing to measure', 'annotations', 'it has no object of the classes: CocoMetric '
                                'gives -1; CocoMetric(format_only=True) writes results only')
            return
        yield from self._problems('iscrowd missing', measured)
        read = measured & ~content.ignored
        yield from self._problems('box malformed', measured & ~read)
        yield from self._rows('ignored but measured', measured & content.ignored & ~content.crowd, "mmdet obeys "
                              "'ignore', its metric does not, and counts the object as missed", note=True)
        numbers = np.array([_is_matched(key) for key in content.ids])
        yield from self._rows('annotation id', measured & np.isnan(numbers), lambda row: (
            f'the id {content.ids[row]!r} is no number, which CocoMetric needs'))
        zero = measured & (numbers == 0) & ~content.crowd
        yield from self._rows('annotation id zero', zero, 'CocoMetric takes the id 0 for an object that was not found',
                              note=measured.sum() >= MANY)
        if 'segm' in self.use.metrics:
            yield from self._problems('mask not measurable', measured)

    def _check_images_without(self, owner: np.ndarray, boxes: np.ndarray) -> Iterator[Finding]:
        crowd = self.content.crowd
        plain = set(owner[boxes & ~crowd].tolist())
        crowds = set(owner[boxes & crowd].tolist()) - plain
        empty = [i for i in self.image_index.values() if i not in plain and i not in crowds]
        for kind, found in (('images without objects', empty), ('images with crowds only', sorted(crowds))):
            if found:
                names = [self.content.images[i][1] for i in found[:3]]
                yield self._finding(kind, 'images', f'{len(found)} of {len(self.image_index)}, first {names}', True)

    # Files

    def _check_files(self) -> Iterator[Finding]:
        entries = [self.content.images[i] for i in self.kept.tolist() if isinstance(self.content.images[i][1], str)]
        if self.files is not None and entries:
            if not os.path.isdir(self.image_folder or '.'):
                yield Finding('image folder missing', self.image_folder, '', 'the folder does not exist')
                return
            paths = [os.path.join(self.image_folder, image[1]) for image in entries]
            missing = [path for path in paths if not self.files.exists(path)]
            yield from listed('image missing', self.file, missing, lambda path: path,
                              lambda path: 'the file does not exist')
            if self.use.maps is not None:
                folder, suffix = self.use.maps
                maps = [os.path.join(folder, image[1].rsplit('.', 1)[0] + suffix) for image in entries]
                yield from listed('label image missing', self.file, [path for path in maps
                                                                     if not self.files.exists(path)],
                                  lambda path: path, lambda path: 'the file does not exist')
            entries = [image for image, path in zip(entries, paths) if self.files.exists(path)]
        turned = []
        for key, name, width, height, _ in sample(entries, self.sampled):
            path = os.path.join(self.image_folder, name)
            if self.files is not None:
                self.files.reads(path)
                if width == height and orientation(path) != 1 or orientation(path) in (2, 3, 4):
                    turned.append(path)
            size = (width, height) if _is_number(width) and _is_number(height) else None
            yield from self._check_size(path, size, dict(img_id=key, instances=[]))
        if turned:
            yield Finding('image turned', self.file, '', f'{len(turned)} images have an EXIF orientation, first '
                          f'{turned[0]}; their size does not show whether the annotations obey it', note=True)

    def _check_size(self, path: str, size: tuple | None, info: dict) -> Iterator[Finding]:
        """An image, of a size that differs by rounding where no mask depends on it."""
        loaded: dict[str, Any] = {}
        for finding in check_image(path, size, self.load, loaded, info):
            if finding.kind == 'image size':
                height, width = loaded['img'].shape[:2]
                masks = 'segm' in self.use.metrics or self.use.masks and self.content.rle_sizes
                near = not masks and max(abs(width - size[0]), abs(height - size[1])) <= 1
                if near or not (self.use.learns or self.use.metrics):
                    finding = finding._replace(note=True)
            yield finding


_RELATIVE = '. No bbox has a number above 1.5: are they relative? COCO has pixels'


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _plain(numbers: np.ndarray) -> list[float]:
    """Numbers for a message, whole ones without a point."""
    return [int(number) if abs(number) < 1e15 and number == int(number) else number for number in numbers.tolist()]


def _is_matched(key: Any) -> float:
    """An annotation's id as COCOeval writes it into its table of matches, NaN where it cannot."""
    if key is None:
        return 1.
    try:
        return float(key)
    except (TypeError, ValueError, OverflowError):
        return np.nan
