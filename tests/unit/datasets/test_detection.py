# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import copy
import json
import pickle

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

from partialnet_mm.datasets import SelectedMasks
from tests.helpers.coco_data import REAL

STEPS = [dict(type='FastLoadAnnotations', with_bbox=True, with_mask=True),
         dict(type='Resize', scale=(333, 200), keep_ratio=True), dict(type='FastRandomFlip', prob=0.5),
         dict(type='PackDetInputs')]


def build(*steps):
    """The steps, and the same of mmdet's."""
    from mmdet.registry import TRANSFORMS
    from mmengine.dataset import Compose
    init_default_scope('mmdet')
    forms = ([dict(step, type=step['type'].removeprefix(prefix)) for step in steps] for prefix in ('', 'Fast'))
    return [Compose([TRANSFORMS.build(step) for step in form]) for form in forms]


def polygons(*outlines):
    return [[float(value) for point in outline for value in point] for outline in outlines]


def sample(height=120, width=160):
    """An image with objects as polygons of one and two outlines, run lengths of both kinds, and masks that fail."""
    from pycocotools import mask as mask_utils
    rng = np.random.default_rng(0)
    bitmap = np.zeros((height, width), np.uint8)
    bitmap[30:90, 20:100] = rng.integers(0, 2, (60, 80))
    packed = mask_utils.encode(np.asfortranarray(bitmap))
    counts = np.diff(np.flatnonzero(np.diff(bitmap.T.ravel(), prepend=1 - bitmap[0, 0], append=2)))
    unpacked = [0] * int(bitmap[0, 0]) + counts.tolist()
    masks = [
        polygons([(10.5, 7), (70, 3.2), (64, 80), (12, 66)]),
        polygons([(0, 0), (30, 0), (30, 20)], [(90, 60), (159.9, 60), (159.9, 119.9), (100, 119)]),
        dict(size=[height, width], counts=packed['counts'].decode()),
        dict(size=[height, width], counts=unpacked),  # as COCO has its crowds
        [[1.0, 2.0, 3.0, 4.0]], [[5.0] * 7], dict(counts='', size=None), [],
        polygons([(158, 118), (158.2, 118), (158.2, 118.2)])]
    instances = [dict(bbox=[5.0 * i, 4.0 * i, 60.0 + 10 * i, 50.0 + 8 * i], bbox_label=i % 3, ignore_flag=int(i == 3),
                      mask=mask) for i, mask in enumerate(masks)]
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return dict(img=image, img_shape=(height, width), ori_shape=(height, width), img_id=1, img_path='a',
                instances=instances)


def photograph_samples():
    if not REAL.is_dir():
        pytest.skip(f'{REAL} does not exist')
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets import CocoDataset
    file = REAL / 'annotations/instances_train.json'
    classes = tuple(category['name'] for category in json.loads(file.read_text())['categories'])
    dataset = CocoDataset(ann_file=str(file), data_prefix=dict(img=str(REAL / 'images')), pipeline=[],
                          metainfo=dict(classes=classes))
    return [LoadImageFromFile()(dataset.get_data_info(index)) for index in range(3)]


def assert_same(ours, theirs):
    """Images, boxes, labels, masks and metadata of two packed samples, bit by bit."""
    assert torch.equal(ours['inputs'], theirs['inputs']) and ours['inputs'].is_contiguous()
    mine, other = ours['data_samples'], theirs['data_samples']
    assert mine.metainfo == other.metainfo
    for name in ('gt_instances', 'ignored_instances'):
        mine_of, other_of = getattr(mine, name), getattr(other, name)
        assert len(mine_of) == len(other_of) and set(mine_of.keys()) == set(other_of.keys())
        if len(mine_of) and 'masks' in mine_of:
            assert type(mine_of.masks) is type(other_of.masks)
            assert mine_of.masks.masks.dtype == other_of.masks.masks.dtype == np.uint8
            assert (mine_of.masks.masks == other_of.masks.masks).all()
        if len(mine_of):
            assert torch.equal(mine_of.bboxes.tensor, other_of.bboxes.tensor)
            assert torch.equal(mine_of.labels, other_of.labels)


def run_both(pipelines, results, seed):
    out = []
    for pipeline in pipelines:
        np.random.seed(seed)
        out.append((pipeline(copy.deepcopy(results)), np.random.random_sample()))
    (ours, our_next), (theirs, their_next) = out
    assert our_next == their_next
    return ours, theirs


@pytest.mark.parametrize('resize', [
    dict(scale=(333, 200), keep_ratio=True), dict(scale=(97, 61), keep_ratio=True), dict(scale=(200, 301))])
@pytest.mark.parametrize('flip', [
    dict(prob=0.5), dict(prob=1.0), dict(prob=[0.3, 0.3, 0.3], direction=['horizontal', 'vertical', 'diagonal'])])
def test_samples_are_those_of_mmdet(resize, flip):
    pipelines = build(STEPS[0], dict(resize, type='Resize'), dict(flip, type='FastRandomFlip'), STEPS[3])
    flips = set()
    for seed in range(8):
        ours, theirs = run_both(pipelines, sample(), seed)
        assert_same(ours, theirs)
        flips.add(ours['data_samples'].flip_direction)
        # Four objects are ignored because their masks fail, and one because it is a crowd.
        assert (len(ours['data_samples'].gt_instances), len(ours['data_samples'].ignored_instances)) == (4, 5)
    assert len(flips) == (1 if flip['prob'] == 1.0 else 2 if flip['prob'] == 0.5 else 4)


def test_photographs_are_those_of_mmdet():
    pipelines = build(STEPS[0], dict(type='Resize', scale=(1333, 800), keep_ratio=True), *STEPS[2:])
    for seed, results in enumerate(photograph_samples()):
        assert_same(*run_both(pipelines, results, seed))


@pytest.mark.parametrize('steps', [
    [STEPS[0], STEPS[3]],
    [STEPS[0], dict(type='RandomCrop', crop_size=(60, 70)), *STEPS[1:]],
    [STEPS[0], dict(type='RandomChoiceResize', scales=[(90, 60), (333, 300)], keep_ratio=True), *STEPS[2:]],
    [STEPS[0], STEPS[2], dict(type='Pad', size=(200, 200)), STEPS[3]],
    [dict(STEPS[0], with_mask=False), *STEPS[1:]],
    [dict(type='FastLoadAnnotations', with_bbox=True, with_mask=True), dict(type='RandomShift', prob=1.0), STEPS[3]]])
def test_other_steps_of_mmdet_take_the_masks(steps):
    pipelines = build(*steps)
    for seed in range(6):
        ours, theirs = run_both(pipelines, sample(), seed)
        if ours is None or theirs is None:
            assert ours is theirs
        else:
            assert_same(ours, theirs)


def test_an_image_without_objects():
    ours, theirs = run_both(build(*STEPS), dict(sample(), instances=[]), 0)
    assert_same(ours, theirs)
    assert ours['data_samples'].gt_instances.masks.masks.shape == (0, 200, 267)


@pytest.fixture
def masks():
    """Ours and mmdet's."""
    return [pipeline(sample())['gt_masks'] for pipeline in build(STEPS[0])]


def test_masks_have_the_interface_of_bitmap_masks(masks):
    ours, theirs = masks
    assert isinstance(ours, SelectedMasks) and (len(ours), ours.height, ours.width) == (9, 120, 160)
    assert (ours.masks == theirs.masks).all() and (ours.areas == theirs.areas).all()
    assert (ours.to_ndarray() == theirs.to_ndarray()).all()
    for index in (0, -1, slice(1, 4), [2, 0], np.array([], int), np.arange(9) % 2 == 0):
        assert (ours[index].masks == theirs[index].masks).all()
    assert [mask.sum() for mask in ours] == [mask.sum() for mask in theirs]
    assert (ours.rescale(0.7).flip('vertical').masks == theirs.rescale(0.7).flip('vertical').masks).all()
    bilinear = [each.resize((40, 50), interpolation='bilinear') for each in masks]
    assert (bilinear[0].masks == bilinear[1].masks).all()
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert (copied.masks == theirs.masks).all()


def test_errors(masks):
    with pytest.raises(ValueError, match="one of horizontal, vertical, diagonal, got 'up'"):
        masks[0].flip('up')
    with pytest.raises(AttributeError, match='nothing'):
        _ = masks[0].nothing
    results = sample()
    results['instances'] = results['instances'][2:3]
    results['ori_shape'] = (100, 160)
    with pytest.raises(ValueError, match=r'the size of their image, \(100, 160\), got a mask of \(120, 160\)'):
        build(STEPS[0])[0](results)
