# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The verdict of the check beside what the host libraries do, for many changes to small data sets.

What ends a training or leaves nothing to learn must be an error; what spoils a metric must be named; what trains and
tests must not be an error. A row that differs has its reason.
"""
import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image

from partialnet_mm.preflight import check_config, errors_in, format_findings
from tests.helpers.host_outcome import (
    HEIGHT,
    IMAGES,
    WIDTH,
    base_data,
    coco_config,
    folder_config,
    host_outcome,
    segmentation_config,
)


class Row(NamedTuple):
    """A change, and the reason if the check and the host differ about it."""

    change: Callable[[Any], None]
    reason: str | None = None
    host: str | None = None  # where the host cannot be run
    quick: bool = False


class Coco:
    """A data set to change: the annotations, the images, and the config."""

    def __init__(self, root: Path, pixels: list[np.ndarray], content: dict) -> None:
        self.root, self.content, self.pixels = root, copy.deepcopy(content), pixels
        (root / 'images').mkdir()
        for i, image in enumerate(pixels, start=1):
            cv2.imwrite(str(root / 'images' / f'{i}.jpg'), image)
        self.cfg = coco_config(root)
        self.text: str | None = None

    first = property(lambda self: self.content['annotations'][0])
    image = property(lambda self: self.content['images'][0])
    all = property(lambda self: self.content['annotations'])
    path = property(lambda self: self.root / 'images' / self.image['file_name'])
    datasets = property(lambda self: [self.cfg[f'{split}_dataloader'].dataset for split in ('train', 'val')
                                      if self.cfg.get(f'{split}_dataloader')])

    def write(self) -> None:
        if not (self.root / 'a.json').exists():
            (self.root / 'a.json').write_text(json.dumps(self.content) if self.text is None else self.text)

    def raw(self, text: str | bytes) -> None:
        """Another text of the annotation file."""
        (self.root / 'a.json').write_bytes(text if isinstance(text, bytes) else text.encode())

    def only(self, split: str) -> None:
        for other in {'train', 'val'} - {split}:
            self.cfg[f'{other}_dataloader'] = self.cfg[f'{other}_evaluator'] = None

    def no_masks(self) -> None:
        del self.cfg.model.roi_head.mask_head
        self.cfg.val_evaluator.metric = 'bbox'
        for dataset in self.datasets:
            for step in dataset.pipeline:
                step.pop('with_mask', None)

    def save(self, name: str, save: Callable[[Image.Image, Path], None] | None = None, **options: Any) -> None:
        """The first image in another format."""
        path = self.root / 'images' / name
        picture = Image.fromarray(self.pixels[0][..., ::-1])
        (save or (lambda image, path: image.save(path, **options)))(picture, path)
        self.image['file_name'] = name

    def load(self, **settings: Any) -> None:
        for dataset in self.datasets:
            dataset.pipeline[0].update(settings)


def each(**values: Any) -> Callable[[Coco], None]:
    return lambda data: [a.update(copy.deepcopy(values)) for a in data.all]


def one(**values: Any) -> Callable[[Coco], None]:
    return lambda data: data.first.update(values)


def without(key: str) -> Callable[[Coco], None]:
    return lambda data: [a.pop(key, None) for a in data.all]


def lacking(key: str) -> Callable[[Coco], None]:
    return lambda data: data.first.pop(key)


def image(**values: Any) -> Callable[[Coco], None]:
    return lambda data: data.image.update(values)


def both(*changes: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda data: [change(data) for change in changes]


def only(split: str) -> Callable[[Coco], None]:
    return lambda data: data.only(split)


def boxes_only(data: Coco) -> None:
    data.no_masks()


def rename_ids(entries: str, key: str, new: Callable[[int], Any]) -> Callable[[Coco], None]:
    def change(data: Coco) -> None:
        for entry in data.content[entries]:
            entry['id'] = new(entry['id'])
        for annotation in data.all if key else ():
            annotation[key] = new(annotation[key])
    return change


def box(scale: Callable[[list], list], most: int | None = None) -> Callable[[Coco], None]:
    return lambda data: [a.update(bbox=scale(a['bbox'])) for a in data.all[:most]]


def mask(change: Callable[[list], Any], most: int | None = None) -> Callable[[Coco], None]:
    return lambda data: [a.update(segmentation=change(a['segmentation'])) for a in data.all[:most]]


def rle(size: tuple[int, int] = (HEIGHT, WIDTH), extra: int = 0, compress: bool = True) -> Callable[[Coco], None]:
    def change(data: Coco) -> None:
        from pycocotools import mask as coder
        code = coder.merge(coder.frPyObjects(data.first['segmentation'], HEIGHT, WIDTH))
        if compress and not extra:
            data.first['segmentation'] = dict(size=list(size), counts=code['counts'].decode())
        else:
            flat = coder.decode(code).ravel(order='F')
            edges = np.flatnonzero(np.diff(np.concatenate(([0], flat, [1 - flat[-1]]))))
            counts = np.diff(np.concatenate(([0], edges))).tolist()
            counts[-1] += extra
            data.first['segmentation'] = dict(size=list(size), counts=counts)
    return change


def exif(orientation: int) -> Callable[[Coco], None]:
    def save(picture: Image.Image, path: Path) -> None:
        tags = picture.getexif()
        tags[0x0112] = orientation
        picture.save(path, exif=tags)
    return lambda data: data.save('turned.jpg', save)


def filtered(**settings: Any) -> Callable[[Coco], None]:
    return lambda data: data.cfg.train_dataloader.dataset.update(filter_cfg=settings)


def append(entries: str, **values: Any) -> Callable[[Coco], None]:
    return lambda data: data.content[entries].append(dict(data.content[entries][0], **values))


def heads(count: int) -> Callable[[Coco], None]:
    return lambda data: [head.update(num_classes=count) for head in data.cfg.model.roi_head.values()]


def classes(*names: str) -> Callable[[Coco], None]:
    return lambda data: [dataset.update(metainfo=dict(classes=names)) for dataset in data.datasets]


def split_by_files(data: Coco) -> None:
    """One file for each half of the images, in a ConcatDataset."""
    parts = []
    for k in range(2):
        images = [i for i in data.content['images'] if i['id'] % 2 == k]
        ids = {i['id'] for i in images}
        (data.root / f'{k}.json').write_text(json.dumps(dict(data.content, images=images, annotations=[
            a for a in data.all if a['image_id'] in ids])))
        parts.append(dict(data.cfg.train_dataloader.dataset, ann_file=f'{k}.json'))
    data.cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)


def list_of_files(data: Coco) -> None:
    data.cfg.train_dataloader.dataset.ann_file = ['a.json', 'a.json']


def other_order_to_train(data: Coco) -> None:
    (data.root / 'train.json').write_text(json.dumps(dict(data.content, categories=data.content['categories'][::-1])))
    data.cfg.train_dataloader.dataset.ann_file = 'train.json'


def metric_of_other_images(data: Coco) -> None:
    other = dict(data.content, images=[dict(i, id=i['id'] + 50) for i in data.content['images']])
    (data.root / 'other.json').write_text(json.dumps(other))
    data.cfg.val_evaluator.ann_file = str(data.root / 'other.json')


def metric_of_more_images(data: Coco) -> None:
    more = copy.deepcopy(data.content)
    more['images'].append(dict(more['images'][0], id=99, file_name='99.jpg'))
    more['annotations'].append(dict(more['annotations'][0], id=99, image_id=99))
    (data.root / 'more.json').write_text(json.dumps(more))
    data.cfg.val_evaluator.ann_file = str(data.root / 'more.json')


def metric_by_another_path(data: Coco) -> None:
    data.cfg.val_evaluator.ann_file = str(data.root / 'images' / '..' / 'a.json')


def format_only(data: Coco) -> None:
    data.content.pop('annotations')
    data.only('val')
    data.cfg.val_evaluator.update(format_only=True, outfile_prefix=str(data.root / 'results'))


def unlabeled(data: Coco) -> None:
    data.content['annotations'] = []
    data.only('train')
    dataset = data.cfg.train_dataloader.dataset
    dataset.pipeline[1] = dict(type='LoadEmptyAnnotations')
    dataset.pipeline.insert(2, dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)))
    dataset.filter_cfg = dict(filter_empty_gt=False)


def types_as_classes(data: Coco) -> None:
    from mmdet.datasets import CocoDataset, transforms
    from mmdet.evaluation import CocoMetric
    for dataset in data.datasets:
        dataset.type = CocoDataset
        for step in dataset.pipeline[1:]:
            step.type = getattr(transforms, step.type)
    data.cfg.val_evaluator.type = CocoMetric


def scoped_types(data: Coco) -> None:
    for dataset in data.datasets:
        dataset.type = 'mmdet.CocoDataset'
    data.cfg.val_evaluator.type = 'mmdet.CocoMetric'


PIXELS_REASON = 'mmdet trains, but on boxes that belong to another size of the picture'

COCO = dict(
    intact=Row(lambda data: None, quick=True),
    # the file
    file_missing=Row(lambda data: data.raw(b'') or (data.root / 'a.json').unlink() or setattr(
        data, 'write', lambda: None), quick=True),
    file_empty=Row(lambda data: data.raw('')),
    file_truncated=Row(lambda data: data.raw(json.dumps(data.content)[:900]), quick=True),
    file_damaged=Row(lambda data: data.raw(json.dumps(data.content).replace('"id":', '"id"', 1))),
    file_twice=Row(lambda data: data.raw(json.dumps(data.content) * 2)),
    file_with_byte_order_mark=Row(lambda data: data.raw('\ufeff' + json.dumps(data.content))),
    file_latin_1=Row(lambda data: data.raw(b'{"info": "\xe9", ' + json.dumps(data.content).encode()[1:])),
    file_indented=Row(lambda data: data.raw(json.dumps(data.content, indent=2)), quick=True),
    file_unicode=Row(lambda data: data.raw(json.dumps(dict(data.content, info='\u732b \U0001f600'),
                                                      ensure_ascii=False))),
    file_annotations_first=Row(lambda data: data.raw(json.dumps(dict(reversed(data.content.items())))), quick=True),
    file_is_list=Row(lambda data: data.raw(json.dumps(data.all))),
    no_info=Row(lambda data: data.content.pop('info') or data.content.pop('licenses')),
    no_images_key=Row(lambda data: data.content.pop('images')),
    no_images=Row(lambda data: data.content['images'].clear()),
    no_categories_key=Row(lambda data: data.content.pop('categories')),
    no_annotations_key=Row(lambda data: data.content.pop('annotations'), quick=True),
    images_are_names=Row(lambda data: data.content.update(images=['1.jpg'])),
    extra_keys=Row(both(each(attributes=dict(occluded=False), keypoints=[]), image(date='x', coco_url=None))),
    # ids
    no_iscrowd=Row(without('iscrowd'), quick=True),
    no_iscrowd_train=Row(both(without('iscrowd'), only('train'))),
    no_iscrowd_boxes=Row(both(without('iscrowd'), boxes_only)),
    annotation_ids_from_0=Row(rename_ids('annotations', '', lambda i: i - 1), quick=True),
    annotation_ids_from_0_train=Row(both(rename_ids('annotations', '', lambda i: i - 1), only('train'))),
    annotation_ids_text=Row(rename_ids('annotations', '', 'a{}'.format), quick=True),
    annotation_ids_text_train=Row(both(rename_ids('annotations', '', 'a{}'.format), only('train'))),
    annotation_ids_digits=Row(rename_ids('annotations', '', str)),
    annotation_ids_negative=Row(rename_ids('annotations', '', lambda i: -i)),
    annotation_ids_large=Row(rename_ids('annotations', '', lambda i: i + 10**12)),
    annotation_ids_twice=Row(lambda data: data.all[1].update(id=data.first['id']), quick=True),
    annotation_id_of_a_stranger=Row(append('annotations', image_id=99), quick=True),
    annotation_id_missing=Row(lacking('id')),
    annotation_id_list=Row(one(id=[1])),
    image_ids_from_0=Row(rename_ids('images', 'image_id', lambda i: i - 1)),
    image_ids_text=Row(rename_ids('images', 'image_id', 'im{}'.format)),
    image_ids_float=Row(rename_ids('images', 'image_id', float)),
    image_ids_mixed=Row(rename_ids('images', 'image_id', lambda i: i if i > 1 else 'one'), quick=True),
    image_ids_text_in_annotations=Row(lambda data: [a.update(image_id=str(a['image_id'])) for a in data.all]),
    image_id_missing=Row(lambda data: data.image.pop('id')),
    image_id_twice=Row(append('images', file_name='2.jpg'), 'mmdet trains, but shows the objects of one picture on '
                       'another'),
    image_listed_twice=Row(append('images')),
    image_file_twice=Row(append('images', id=99)),
    category_ids_from_0=Row(rename_ids('categories', 'category_id', lambda i: i - 1)),
    category_ids_text=Row(rename_ids('categories', 'category_id', 'c{}'.format)),
    category_ids_mixed=Row(rename_ids('categories', 'category_id', lambda i: i if i > 1 else 'one')),
    category_ids_large=Row(rename_ids('categories', 'category_id', lambda i: i * 1000)),
    category_id_twice=Row(lambda data: data.content['categories'][1].update(id=1), 'mmdet trains, but takes the '
                          'objects of one class for those of the other'),
    category_name_twice=Row(append('categories', id=7)),
    category_name_twice_used=Row(both(append('categories', id=7), one(category_id=7)), quick=True),
    category_without_name=Row(lambda data: data.content['categories'][0].pop('name')),
    category_without_id=Row(lambda data: data.content['categories'][0].pop('id')),
    category_more=Row(append('categories', id=7, name='walnut')),
    category_less=Row(lambda data: data.content['categories'].pop(), quick=True),
    category_misspelt=Row(lambda data: data.content['categories'][0].update(name='Dates')),
    categories_reversed=Row(lambda data: data.content['categories'].reverse()),
    categories_reversed_train=Row(other_order_to_train, 'mmdet trains and measures, but names one class in training '
                                  'and another in validation; its pipelines give labels, not names'),
    annotation_of_no_image=Row(append('annotations', id=99, image_id=99), quick=True),
    annotation_of_no_category=Row(one(category_id=99)),
    annotation_without_image_id=Row(lacking('image_id')),
    annotation_without_category_id=Row(lacking('category_id')),
    # boxes
    box_missing=Row(lacking('bbox'), quick=True),
    box_null=Row(one(bbox=None)),
    box_of_three=Row(one(bbox=[1, 2, 3])),
    box_of_text=Row(one(bbox=['1', '2', '30', '40'])),
    box_nan=Row(one(bbox=[1, 2, math.nan, 40])),
    boxes_relative=Row(box(lambda b: [b[0] / WIDTH, b[1] / HEIGHT, b[2] / WIDTH, b[3] / HEIGHT]), quick=True),
    one_box_relative=Row(box(lambda b: [v / WIDTH for v in b], 1)),
    boxes_corners=Row(box(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])),
    box_negative=Row(box(lambda b: [b[0] + b[2], b[1] + b[3], -b[2], -b[3]], 1)),
    boxes_negative=Row(box(lambda b: [b[0] + b[2], b[1] + b[3], -b[2], -b[3]]), quick=True),
    box_without_pixel=Row(box(lambda b: [*b[:2], 0.5, b[3]], 1), quick=True),
    boxes_without_pixel=Row(box(lambda b: [*b[:2], 0, 0])),
    boxes_of_other_size=Row(box(lambda b: [8 * v for v in b])),
    box_partly_outside=Row(one(bbox=[WIDTH - 20, 10, 80, 30])),
    box_by_rounding_outside=Row(one(bbox=[0, 0, WIDTH + .4, HEIGHT])),
    box_beyond=Row(one(bbox=[WIDTH + 5, 10, 20, 30])),
    box_whole_numbers=Row(box(lambda b: [int(v) for v in b])),
    area_missing=Row(lacking('area')),
    area_null=Row(one(area=None)),
    area_text=Row(one(area='12')),
    area_zero=Row(one(area=0)),
    areas_zero=Row(each(area=0), quick=True),
    areas_wrong=Row(each(area=1)),
    iscrowd_true=Row(each(iscrowd=False)),
    iscrowd_two=Row(one(iscrowd=2)),
    iscrowd_null=Row(one(iscrowd=None)),
    iscrowd_null_train=Row(both(one(iscrowd=None), only('train'))),
    iscrowd_text=Row(one(iscrowd='0'), 'mmdet takes the text 0 for a crowd: it learns and measures nothing of the '
                     'object'),
    all_crowds=Row(each(iscrowd=1)),
    ignored=Row(one(ignore=1)),
    ignored_crowd=Row(one(ignore=1, iscrowd=1)),
    # masks
    mask_missing=Row(lacking('segmentation'), quick=True),
    mask_missing_boxes=Row(both(without('segmentation'), boxes_only), quick=True),
    mask_missing_metric=Row(both(without('segmentation'), boxes_only, lambda data: data.cfg.val_evaluator.update(
        metric=['bbox', 'segm']))),
    mask_empty=Row(one(segmentation=[])),
    mask_flat=Row(mask(lambda m: m[0]), quick=True),
    mask_of_points=Row(mask(lambda m: [np.reshape(m[0], (-1, 2)).tolist()], 1)),
    mask_of_an_odd_number_of_points=Row(one(segmentation=[
        [[1, 1], [40, 1], [60, 20], [40, 50], [20, 60], [9, 50], [1, 9]]])),
    mask_of_two_points=Row(one(segmentation=[[1, 2, 30, 40]])),
    mask_of_two_points_train=Row(both(one(segmentation=[[1, 2, 30, 40]]), only('train')), quick=True),
    mask_odd=Row(mask(lambda m: [m[0][:-1]], 1)),
    mask_with_a_short_part=Row(mask(lambda m: [*m, [1, 2]], 1)),
    mask_of_null=Row(one(segmentation=[[None] * 6]), host='ends'),
    mask_nan=Row(one(segmentation=[[1, 1, math.nan, 30, 40, 40]]), host='ends'),
    mask_of_text=Row(one(segmentation='abc')),
    mask_relative=Row(mask(lambda m: [[v / WIDTH for v in p] for p in m]), quick=True),
    mask_outside=Row(mask(lambda m: [[*m[0], WIDTH + 40, 5]], 1)),
    mask_two_parts=Row(mask(lambda m: [*m, [5, 5, 9, 5, 9, 9]], 1)),
    rle=Row(rle(), quick=True),
    rle_lists=Row(rle(compress=False)),
    # The pixels that are missing are memory that was never written: pycocotools may never return.
    rle_short=Row(rle(extra=-1), host='ends'),
    rle_long=Row(rle(extra=50)),
    rle_turned=Row(rle(size=(WIDTH, HEIGHT)), quick=True),
    rle_other_size=Row(rle(size=(HEIGHT * 2, WIDTH * 2)), quick=True),
    rle_damaged=Row(one(segmentation=dict(size=[HEIGHT, WIDTH], counts='abc'))),
    rle_without_size=Row(one(segmentation=dict(counts=[5, 5]))),
    rle_as_polygons=Row(both(rle(), lambda data: data.datasets[0].pipeline[1].update(poly2mask=False))),
    # sizes
    width_missing=Row(lambda data: data.image.pop('width'), quick=True),
    width_null=Row(image(width=None)),
    width_text=Row(image(width='128')),
    width_zero=Row(image(width=0)),
    width_by_one=Row(image(width=WIDTH + 1), quick=True),
    width_by_one_boxes=Row(both(image(width=WIDTH + 1), boxes_only)),
    size_halved=Row(image(width=WIDTH // 2, height=HEIGHT // 2)),
    size_doubled_boxes=Row(both(image(width=WIDTH * 2, height=HEIGHT * 2), boxes_only), PIXELS_REASON),
    size_float=Row(image(width=float(WIDTH), height=float(HEIGHT))),
    exif_turned=Row(exif(6), quick=True),
    exif_turned_boxes=Row(both(exif(6), boxes_only, one(bbox=[90, 10, 30, 30]))),
    exif_ignored=Row(both(exif(6), lambda data: data.load(color_type='color_ignore_orientation')), quick=True),
    exif_ignored_pillow=Row(both(exif(8), lambda data: data.load(
        color_type='color_ignore_orientation', imdecode_backend='pillow'))),
    exif_obeyed=Row(both(exif(6), boxes_only, image(width=HEIGHT, height=WIDTH), one(bbox=[5, 5, 40, 40]))),
    exif_upside_down=Row(exif(3)),
    # filter
    nothing_large_enough=Row(filtered(filter_empty_gt=True, min_size=500), quick=True),
    an_image_without_objects=Row(lambda data: data.content.update(annotations=[a for a in data.all if a['image_id'] !=
                                                                               1])),
    no_filter=Row(lambda data: data.cfg.train_dataloader.dataset.pop('filter_cfg')),
    file_of_filtered_image_missing=Row(both(only('train'), lambda data: data.content.update(annotations=[
        a for a in data.all if a['image_id'] != 1]), lambda data: data.path.unlink()), quick=True),
    indices=Row(lambda data: data.datasets[0].update(indices=2)),
    file_beyond_indices_missing=Row(both(only('train'), lambda data: data.datasets[0].update(indices=[1, 2]),
                                         lambda data: data.path.unlink())),
    # config
    classes_fewer=Row(both(classes('date', 'fig'), heads(2)), quick=True),
    classes_more=Row(both(classes('date', 'fig', 'hazelnut', 'walnut'), heads(4))),
    classes_in_other_order=Row(classes('hazelnut', 'fig', 'date')),
    heads_larger=Row(heads(4)),
    heads_smaller=Row(heads(2)),
    mask_head_none=Row(both(boxes_only, lambda data: data.cfg.model.roi_head.update(mask_head=None)), quick=True),
    several_files=Row(split_by_files, quick=True),
    list_of_files=Row(list_of_files),
    metric_of_other_images=Row(metric_of_other_images),
    metric_of_more_images=Row(metric_of_more_images),
    metric_by_another_path=Row(metric_by_another_path),
    metric_without_file=Row(lambda data: data.cfg.val_evaluator.update(ann_file=str(data.root / 'no.json'))),
    format_only=Row(format_only, quick=True),
    unlabeled=Row(unlabeled, quick=True),
    unlabeled_without_filter=Row(both(unlabeled, filtered(filter_empty_gt=True)), quick=True),
    types_as_classes=Row(types_as_classes, quick=True),
    scoped_types=Row(scoped_types),
    no_validation=Row(only('train')),
    prefix_img_path=Row(lambda data: [dataset.update(data_prefix=dict(img_path='images/')) for dataset in data.datasets
                                      ]),
    # files of images
    image_missing=Row(lambda data: data.path.unlink(), quick=True),
    image_empty=Row(lambda data: data.path.write_bytes(b'')),
    image_is_text=Row(lambda data: data.path.write_text('<html>')),
    image_truncated=Row(lambda data: data.path.write_bytes(data.path.read_bytes()[:900]), quick=True),
    image_is_folder=Row(lambda data: data.path.unlink() or data.path.mkdir()),
    image_name_number=Row(image(file_name=1)),
    image_name_absolute=Row(lambda data: data.image.update(file_name=str(data.path))),
    image_in_subfolder=Row(lambda data: (data.root / 'images/sub').mkdir() or shutil.move(
        data.path, data.root / 'images/sub/1.jpg') and data.image.update(file_name='sub/1.jpg')),
    image_wrong_ending=Row(lambda data: data.path.rename(data.path.with_suffix('.png')) and data.image.update(
        file_name='1.png')),
    image_name_case=Row(lambda data: data.image.update(file_name='1.JPG')),
    ignore_empty=Row(both(lambda data: data.path.write_bytes(b'x'), lambda data: data.load(ignore_empty=True),
                          only('train'))),
    gray=Row(lambda data: data.save('x.png', lambda i, p: i.convert('L').save(p))),
    gray_unchanged=Row(both(lambda data: data.load(color_type='unchanged'), lambda data: data.save(
        'x.png', lambda i, p: i.convert('L').save(p))), quick=True),
    rgba_unchanged=Row(both(lambda data: data.load(color_type='unchanged'), lambda data: data.save(
        'x.png', lambda i, p: i.convert('RGBA').save(p)))),
    rgba=Row(lambda data: data.save('x.png', lambda i, p: i.convert('RGBA').save(p))),
    palette=Row(lambda data: data.save('x.png', lambda i, p: i.convert('P').save(p))),
    cmyk=Row(lambda data: data.save('x.jpg', lambda i, p: i.convert('CMYK').save(p))),
    bilevel=Row(lambda data: data.save('x.png', lambda i, p: i.convert('1').save(p))),
    depth_16=Row(lambda data: data.save('x.png', lambda i, p: cv2.imwrite(str(p), np.zeros((HEIGHT, WIDTH), np.uint16)))
                 ),
    float_tiff=Row(lambda data: data.save('x.tif', lambda i, p: i.convert('F').save(p)), quick=True),
    float_tiff_pillow=Row(both(lambda data: data.load(imdecode_backend='pillow'), lambda data: data.save(
        'x.tif', lambda i, p: i.convert('F').save(p)))),
    **{ending: Row(lambda data, ending=ending: data.save(f'x.{ending}')) for ending in (
        'bmp', 'gif', 'webp', 'tiff', 'ico', 'tga', 'pcx', 'sgi', 'dds', 'ppm', 'pgm', 'jp2', 'avif', 'qoi', 'pdf')},
    **{f'{ending}_pillow': Row(both(lambda data: data.load(imdecode_backend='pillow'),
                                    lambda data, ending=ending: data.save(f'x.{ending}')))
       for ending in ('tga', 'pcx', 'ppm')},
    **{ending: Row(lambda data, ending=ending: data.save(f'x.{ending}', lambda i, p: cv2.imwrite(
        str(p), data.pixels[0].astype(np.float32) / 255)), quick=True) for ending in ('hdr', 'pfm')})


class Pairs:
    """Images and label images to change."""

    def __init__(self, root: Path, pixels: list[np.ndarray], content: dict) -> None:
        self.root, self.cfg = root, segmentation_config(root)
        for name in ('images', 'labels'):
            (root / name).mkdir()
        rng = np.random.default_rng(0)
        for i, image_ in enumerate(pixels, start=1):
            cv2.imwrite(str(root / f'images/{i}.jpg'), image_)
            cv2.imwrite(str(root / f'labels/{i}.png'), rng.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8))

    datasets = property(lambda self: [self.cfg[f'{split}_dataloader'].dataset for split in ('train', 'val')])
    paths = property(lambda self: sorted((self.root / 'labels').iterdir()))

    def write(self) -> None:
        pass

    def labels(self, change: Callable[[np.ndarray], np.ndarray], most: int | None = None) -> None:
        for path in self.paths[:most]:
            cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))

    def settings(self, **values: Any) -> None:
        for dataset in self.datasets:
            dataset.update(values)


def labels(change: Callable[[np.ndarray], np.ndarray], most: int | None = None) -> Callable[[Pairs], None]:
    return lambda data: data.labels(change, most)


def settings(**values: Any) -> Callable[[Pairs], None]:
    return lambda data: data.settings(**values)


def palette(data: Pairs) -> None:
    for path in data.paths:
        picture = Image.open(path).convert('P')
        picture.putdata(np.asarray(Image.open(path)).ravel().tolist())
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        picture.save(path)


SEGMENTATION = dict(
    intact=Row(lambda data: None, quick=True),
    label_missing=Row(lambda data: data.paths[0].unlink(), quick=True),
    label_without_image=Row(lambda data: (data.root / 'images/1.jpg').unlink()),
    image_suffix_wrong=Row(settings(img_suffix='.png'), quick=True),
    label_suffix_wrong=Row(settings(seg_map_suffix='_labels.png')),
    folder_missing=Row(settings(data_prefix=dict(img_path='no', seg_map_path='labels'))),
    value_beyond_the_classes=Row(labels(lambda a: a + 1, 1), quick=True),
    value_ignored=Row(labels(lambda a: np.where(a == 2, 255, a).astype(np.uint8))),
    only_0_and_255=Row(labels(lambda a: ((a > 0) * 255).astype(np.uint8)), quick=True),
    all_ignored=Row(labels(lambda a: np.full_like(a, 255))),
    reduce_zero_label=Row(settings(reduce_zero_label=True)),
    reduce_zero_label_of_1_to_3=Row(both(settings(reduce_zero_label=True), labels(lambda a: a + 1)), quick=True),
    reduce_zero_label_of_1_to_4=Row(both(settings(reduce_zero_label=True), labels(lambda a: a + 2))),
    size_other=Row(labels(lambda a: cv2.resize(a, (64, 48), interpolation=cv2.INTER_NEAREST), 1), quick=True),
    size_turned=Row(labels(lambda a: np.ascontiguousarray(a.T), 1)),
    colours=Row(labels(lambda a: np.stack((a, a, a), -1), 1), quick=True),
    palette_png=Row(palette),
    palette_png_by_opencv=Row(both(palette, lambda data: [dataset.pipeline[k].update(imdecode_backend='cv2')
                                                          for dataset, k in zip(data.datasets, (1, 2))])),
    depth_16=Row(labels(lambda a: a.astype(np.uint16))),
    depth_16_beyond=Row(labels(lambda a: a.astype(np.uint16) + 256), 'mmseg trains, but keeps the lower 8 bits of each '
                        'label'),
    label_broken=Row(lambda data: data.paths[0].write_bytes(b'x')),
    image_broken=Row(lambda data: (data.root / 'images/1.jpg').write_bytes(b'x')),
    list_of_names=Row(both(settings(ann_file='names.txt'), lambda data: (data.root / 'names.txt').write_text('1\n2\n')),
                      quick=True),
    list_of_names_with_one_missing=Row(both(settings(ann_file='names.txt'), lambda data: (
        data.root / 'names.txt').write_text('1\n9\n'))),
    list_with_a_blank_line=Row(both(settings(ann_file='names.txt'), lambda data: (
        data.root / 'names.txt').write_text('1\n\n2\n'))),
    head_larger=Row(lambda data: data.cfg.model.decode_head.update(num_classes=5)),
    head_smaller=Row(lambda data: data.cfg.model.decode_head.update(num_classes=2)),
    gray_images=Row(lambda data: [dataset.pipeline[0].update(color_type='grayscale') for dataset in data.datasets]))


class Folders:
    """Folders of classes to change."""

    def __init__(self, root: Path, pixels: list[np.ndarray], content: dict) -> None:
        self.root, self.cfg = root, folder_config(root)
        for split in ('train', 'val'):
            for name in ('blue', 'green', 'red'):
                (root / split / name).mkdir(parents=True)
                for i in range(2):
                    cv2.imwrite(str(root / split / name / f'{i}.png'), pixels[i])

    datasets = property(lambda self: [self.cfg[f'{split}_dataloader'].dataset for split in ('train', 'val')])

    def write(self) -> None:
        pass

    def remove(self, name: str) -> None:
        shutil.rmtree(self.root / name)

    def listed(self, lines: str) -> None:
        (self.root / 'list.txt').write_text(lines)
        self.cfg.train_dataloader.dataset.update(ann_file='list.txt')


FOLDERS = dict(
    intact=Row(lambda data: None, quick=True),
    folder_missing=Row(lambda data: data.remove('train')),
    no_folders=Row(lambda data: data.remove('train') or (data.root / 'train').mkdir()),
    class_empty=Row(lambda data: data.remove('train/red') or (data.root / 'train/red').mkdir(), quick=True),
    class_missing_to_validate=Row(lambda data: data.remove('val/blue'), quick=True),
    last_class_missing_to_validate=Row(lambda data: data.remove('val/red'), 'the labels that are left agree, but the '
                                       'folders of the splits differ, and mmpretrain numbers them by position'),
    class_more=Row(lambda data: [shutil.copytree(data.root / split / 'red', data.root / split / 'white')
                                 for split in ('train', 'val')]),
    head_larger=Row(lambda data: data.cfg.model.head.update(num_classes=1000)),
    head_smaller=Row(lambda data: data.cfg.model.head.update(num_classes=2)),
    classes_of_the_config=Row(lambda data: [dataset.update(metainfo=dict(classes=('a', 'b', 'c')))
                                            for dataset in data.datasets]),
    classes_of_the_config_fewer=Row(lambda data: [dataset.update(metainfo=dict(classes=('a', 'b')))
                                                  for dataset in data.datasets]),
    image_broken=Row(lambda data: (data.root / 'train/red/0.png').write_bytes(b'x'), quick=True),
    list=Row(lambda data: data.listed('blue/0.png 0\ngreen/0.png 1\nred/0.png 2\n'), quick=True),
    list_with_one_missing=Row(lambda data: data.listed('blue/0.png 0\ngreen/7.png 1\nred/0.png 2\n')),
    list_without_labels=Row(lambda data: data.listed('blue/0.png\ngreen/0.png\n')),
    list_from_1=Row(lambda data: data.listed('blue/0.png 1\ngreen/0.png 2\nred/0.png 3\n')),
    list_negative=Row(lambda data: data.listed('blue/0.png 0\ngreen/0.png -1\nred/0.png 2\n')),
    without_labels=Row(lambda data: [dataset.update(with_label=False) for dataset in data.datasets]),
    imagenet_of_three_classes=Row(lambda data: data.cfg.train_dataloader.dataset.update(type='ImageNet')),
    gray=Row(lambda data: [dataset.pipeline[0].update(color_type='grayscale') for dataset in data.datasets]))

TABLES = dict(coco=(Coco, COCO), segmentation=(Pairs, SEGMENTATION), folders=(Folders, FOLDERS))


@pytest.fixture(scope='module')
def base() -> tuple[list[np.ndarray], dict]:
    return base_data()


def test_the_table_is_large():
    rows = [row for _, table in TABLES.values() for row in table.values()]
    assert len(rows) >= 200 and sum(row.quick for row in rows) >= 40
    assert len(COCO['intact']) and IMAGES == 4


@pytest.mark.parametrize('table, name', [
    pytest.param(table, name, marks=() if row.quick else pytest.mark.slow)
    for table, (_, rows) in TABLES.items() for name, row in rows.items()])
def test_the_check_agrees_with_the_host(table, name, base, tmp_path):
    kind, rows = TABLES[table]
    row = rows[name]
    data = kind(tmp_path, *base)
    row.change(data)
    data.write()
    findings = check_config(data.cfg, cached=False)
    host, text = (row.host, 'not run') if row.host else host_outcome(data.cfg)
    assert not any('check itself failed' in finding.text for finding in findings), format_findings(findings)
    errors = errors_in(findings)
    agree = bool(errors) if host in ('ends', 'nothing to learn') else bool(findings) if host == 'spoiled' else \
        not errors
    assert agree != bool(row.reason), f'host: {host} ({text})\ncheck: {format_findings(findings)}'
