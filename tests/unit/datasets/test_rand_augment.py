# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
from mmengine.registry import init_default_scope

from tests.helpers.photographs import decode, photographs

ARGUMENTS = dict(num_policies=2, magnitude_level=7, magnitude_std=0.5,
                 hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'))
OPERATIONS = ['AutoContrast', 'Brightness', 'ColorTransform', 'Contrast', 'Equalize', 'Invert', 'Posterize', 'Rotate',
              'Sharpness', 'Shear', 'Solarize', 'SolarizeAdd', 'Translate']


def build(**arguments):
    """Ours and mmpretrain's."""
    from mmpretrain.registry import TRANSFORMS
    init_default_scope('mmpretrain')
    return [TRANSFORMS.build(dict(arguments, type=name)) for name in ('FastRandAugment', 'RandAugment')]


def run(augment, image, seed):
    """Its result, and the random number that comes next."""
    np.random.seed(seed)
    return augment(dict(img=image.copy()))['img'], np.random.random_sample()


def assert_same(augments, image, seed):
    (ours, our_next), (theirs, their_next) = (run(augment, image, seed) for augment in augments)
    assert ours.dtype == theirs.dtype and (ours == theirs).all() and our_next == their_next
    return ours


@pytest.fixture(scope='module')
def images():
    """A photograph of ImageNet, one of CIFAR-10, and images of few levels."""
    photograph, small = (decode(photographs(name, 1)[0]) for name in ('imagenet_sample.tar', 'cifar10.tar.gz'))
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    return [photograph, small, noise, np.full((8, 8, 3), 255, np.uint8), noise // 255 * 7 + 40,
            np.concatenate([noise, np.full_like(noise, 3)])]


@pytest.mark.parametrize('level', [0, 3, 7, 10])
@pytest.mark.parametrize('name', OPERATIONS)
def test_operations_are_those_of_mmpretrain(images, name, level):
    from mmpretrain.datasets.transforms.auto_augment import RANDAUG_POLICIES
    policies = [dict(policy, prob=0.8) for policy in RANDAUG_POLICIES['timm_increasing'] if policy['type'] == name]
    augments = build(policies=policies, **dict(ARGUMENTS, magnitude_level=level, num_policies=1))
    changed = False
    for seed, image in enumerate(images * 3):
        changed |= bool((assert_same(augments, image, seed) != image).any())
    assert changed or level == 0


def test_policies_are_those_of_mmpretrain(images):
    augments = build(policies='timm_increasing', **ARGUMENTS)
    for seed in range(60):
        result = assert_same(augments, images[seed % 2], seed)
        assert result.transpose(2, 0, 1).flags.c_contiguous


def test_planar_images_are_taken_as_they_are(images):
    ours, _ = build(policies='timm_increasing', **ARGUMENTS)
    planar = images[0].transpose(2, 0, 1).copy().transpose(1, 2, 0)
    for seed in range(20):
        np.random.seed(seed)
        result = ours(dict(img=planar))['img']
        assert (result == run(ours, images[0], seed)[0]).all() and (planar == images[0]).all()


@pytest.mark.parametrize('policy, values', [
    (dict(type='Solarize', thr=100), dict(prob=1.)), (dict(type='Contrast', magnitude=0.4), dict(prob=1.)),
    (dict(type='ColorTransform', magnitude=-0.7), dict(prob=1.)), (dict(type='Cutout', shape=10), dict(prob=1.)),
    (dict(type='SolarizeAdd', magnitude=100), dict(prob=1.))])
def test_fixed_magnitudes_and_other_operations(images, policy, values):
    augments = build(policies=[dict(policy, **values)], num_policies=2, magnitude_level=5)
    for seed in range(5):
        assert_same(augments, images[0], seed)


@pytest.mark.parametrize('form', ['gray', 'float'])
def test_other_images_are_left_to_mmpretrain(images, form):
    image = images[0][..., 0] if form == 'gray' else images[0].astype(np.float32)
    augments = build(policies=[dict(type='Brightness', magnitude=0.3), dict(type='Solarize', thr=99)],
                     num_policies=2, magnitude_level=5)
    for seed in range(5):
        assert_same(augments, image, seed)


def test_a_subclass_keeps_its_own_result(images):
    from mmpretrain.datasets.transforms import Contrast
    from mmpretrain.registry import TRANSFORMS

    class Nothing(Contrast):
        def transform(self, results):
            return results

    init_default_scope('mmpretrain')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRANSFORMS.module_dict, 'Nothing', Nothing)
        ours, _ = build(policies=[dict(type='Nothing', magnitude=0.9, prob=1.)], num_policies=2, magnitude_level=5)
    assert (run(ours, images[0], 0)[0] == images[0]).all()


def test_a_policy_that_does_not_exist():
    with pytest.raises(AssertionError, match='timm_increasing'):
        build(policies='none', **ARGUMENTS)
