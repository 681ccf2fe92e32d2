# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from partialnet_mm.datasets import SHAPE_CLASSES, write_shapes_dataset


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    objects = write_shapes_dataset(root, dict(train=12, val=5), size=96, seed=3)
    return root, objects


def test_files_are_coco(shapes):
    root, objects = shapes
    for split, count in (('train', 12), ('val', 5)):
        coco = COCO(str(root / 'annotations' / f'instances_{split}.json'))
        assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(SHAPE_CLASSES)
        assert len(coco.imgs) == count and len(coco.anns) == objects[split] >= count
        for image in coco.imgs.values():
            assert cv2.imread(str(root / split / image['file_name'])).shape == (96, 96, 3)
            assert 1 <= len(coco.getAnnIds(image["id"])) <= 4


def test_boxes_and_areas_are_those_of_the_masks(shapes):
    root, _ = shapes
    coco = COCO(str(root / 'annotations' / 'instances_train.json'))
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation['bbox']
        assert (left, top) == (columns.min(), rows.min())
        assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert annotation['area'] == mask.sum() > 0


def test_no_two_objects_share_a_pixel(shapes):
    root, _ = shapes
    coco = COCO(str(root / 'annotations' / 'instances_train.json'))
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(image_id))]
        assert np.sum(masks, axis=0).max() == 1


def test_same_seed_same_files_other_seed_others(shapes, tmp_path):
    root, _ = shapes
    write_shapes_dataset(tmp_path / 'again', dict(train=12, val=5), size=96, seed=3)
    write_shapes_dataset(tmp_path / 'other', dict(train=12, val=5), size=96, seed=4)
    for name in ('annotations/instances_val.json', 'train/00001.jpg', 'val/00005.jpg'):
        assert (root / name).read_bytes() == (tmp_path / 'again' / name).read_bytes()
        assert (root / name).read_bytes() != (tmp_path / 'other' / name).read_bytes()


def test_splits_differ(shapes):
    root, _ = shapes
    assert (root / 'train' / '00001.jpg').read_bytes() != (root / 'val' / '00001.jpg').read_bytes()


def test_masks_are_compressed(shapes):
    root, _ = shapes
    annotation = json.loads((root / 'annotations' / 'instances_val.json').read_text())['annotations'][0]
    assert mask_utils.decode(annotation['segmentation']).shape == (96, 96)


@pytest.mark.parametrize('images, size, message', [
    (dict(train=2), 32, 'size must be at least 64 pixels, got 32'),
    (dict(train=0), 96, "each split needs at least one image, got {'train': 0}"),
])
def test_bad_arguments(tmp_path, images, size, message):
    with pytest.raises(ValueError, match=message):
        write_shapes_dataset(tmp_path, images, size)
