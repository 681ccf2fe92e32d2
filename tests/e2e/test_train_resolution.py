# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The resolution of each training batch: drawn alike everywhere, drawn again on resuming, and what the images have."""
import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from mmengine.runner import IterBasedTrainLoop

from partialnet_mm.engine import TrainResolutionHook
from partialnet_mm.engine.hooks.epoch_data_hook import stop_workers
from partialnet_mm.engine.hooks.train_resolution import PAPER_SIZES, TrainResolution
from partialnet_mm.engine.hooks.train_resolution_data import ResolutionBatchSampler, ResolutionDataset
from tests.helpers.libraries import ROOT

pytest.importorskip('mmpretrain')

from tests.helpers.resolution_training import SIZES, Batches, build_runner, write_images  # noqa: E402
from tests.helpers.toy_training import SignalAt, fingerprint, former_handlers  # noqa: E402, F401

OFFICIAL = [(0, 192), (280, 224)]


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def drawn(count, seed=0, sizes=SIZES):
    """The sides of the first iterations, as every training must have them."""
    return [TrainResolution(sizes).size_at(seed, iteration, 0) for iteration in range(count)]


def train_until_left(runner):
    """Trains until a signal ends it, and does what the interpreter does at its exit."""
    with pytest.raises(SystemExit):
        runner.train()
    stop_workers(runner)


# What is drawn


def test_the_default_is_table_8_and_each_size_comes_as_often():
    sizes = drawn(6000, sizes=None)
    assert sizes[:12] == [224, 288, 192, 288, 128, 192, 192, 128, 192, 128, 192, 128]
    counts = Counter(sizes)
    assert set(counts) == set(PAPER_SIZES) == {128, 160, 192, 224, 256, 288}
    # chi-square with 5 degrees of freedom: 15.1 is exceeded once in 100 draws
    assert sum((count - 1000)**2 / 1000 for count in counts.values()) < 15.1
    # and no size says anything about the next one: 35 degrees of freedom, of which 57.3 is exceeded once in 100
    pairs = Counter(zip(sizes, sizes[1:]))
    assert len(pairs) == 36 and sum((n - 5999 / 36)**2 / (5999 / 36) for n in pairs.values()) < 57.3


def test_draws_depend_on_seed_and_iteration_alone():
    assert drawn(50) == drawn(50)
    assert drawn(50) != drawn(50, seed=1)
    draw = TrainResolution()
    assert draw.size_at(3, 1000, 0) == draw.size_at(3, 1000, 99)
    assert [draw.size_at(3, i, 0) for i in (7, 5, 6)] == [draw.size_at(3, i, 0) for i in range(8)][7:] + \
        [draw.size_at(3, i, 0) for i in (5, 6)]


def test_the_official_schedule():
    official = TrainResolution(schedule=OFFICIAL)
    assert [official.size_at(0, 313 * epoch, epoch) for epoch in (0, 1, 279, 280, 281, 299)] == [
        192, 192, 192, 224, 224, 224]


def test_all_sizes_and_how_the_log_calls_them():
    assert TrainResolution(schedule=OFFICIAL).sizes == (192, 224)
    assert repr(TrainResolution(schedule=OFFICIAL)) == '192 from 0 on, 224 from 280 on'
    assert repr(TrainResolution([32, 64])) == 'drawn from [32, 64]'


@pytest.mark.parametrize('arguments, message', [
    (dict(sizes=[]), r'sizes must be a list of at least one side in pixels, got \[\]'),
    (dict(sizes=224), 'sizes must be a list of at least one side in pixels, got 224'),
    (dict(sizes=[224, 100]), 'sizes must hold multiples of 32, from 32 up, got 100'),
    (dict(sizes=[0]), 'sizes must hold multiples of 32, from 32 up, got 0'),
    (dict(sizes=[-32]), 'sizes must hold multiples of 32, from 32 up, got -32'),
    (dict(sizes=[224.0]), 'sizes must hold multiples of 32, from 32 up, got 224.0'),
    (dict(sizes=['224']), "sizes must hold multiples of 32, from 32 up, got '224'"),
    (dict(schedule=[]), r'schedule must be pairs \(first epoch, side\) that start at epoch 0 and rise.*got \[\]'),
    (dict(schedule=[192, 224]), r'schedule must be pairs .*got \[192, 224\]'),
    (dict(schedule=[(10, 192)]), r'schedule must be pairs .*got \[\(10, 192\)\]'),
    (dict(schedule=[(0, 192), (5, 224), (5, 256)]), 'schedule must be pairs'),
    (dict(schedule=[(0, 200)]), 'schedule must hold multiples of 32, from 32 up, got 200'),
    (dict(sizes=[224], schedule=OFFICIAL), 'only one of them may be given'),
])
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainResolutionHook(**arguments)


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match=r"TrainResolutionHook has no argument 'size' .* did you mean 'sizes'"):
        TrainResolutionHook(size=224)


# What the images have


@pytest.mark.parametrize('workers', [0, 2])
def test_images_of_mmpretrains_resnet_config_have_the_drawn_size(tmp_path, images, workers):
    batches = Batches()
    runner = build_runner(tmp_path, images, hooks=[batches], workers=workers)
    runner.train()
    assert batches.sides == drawn(12)
    assert set(batches.sides) == set(SIZES)
    scalars, _ = runner.message_hub.get_scalar('train/resolution').data
    assert scalars.tolist() == batches.sides


def test_the_log_says_the_resolution(tmp_path, images):
    runner = build_runner(tmp_path, images, epochs=1, options={'log_level': 'INFO', 'default_hooks.logger.interval': 1})
    runner.train()
    log = (tmp_path / runner.timestamp / f'{runner.timestamp}.log').read_text()
    assert f'training resolution: drawn from {SIZES}, seed 0' in log
    assert [int(side) for side in re.findall(r'resolution: (\d+)', log.split('seed 0')[-1])] == drawn(6)


def test_mixup_and_cutmix_mix_images_of_one_size(tmp_path, images):
    batches = Batches()
    augments = [dict(type='Mixup', alpha=0.5), dict(type='CutMix', alpha=1.0)]
    loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    runner = build_runner(tmp_path, images, dict(sizes=SIZES, seed=5), hooks=[batches], options={
        'model.train_cfg': dict(augments=augments), 'model.head.loss': dict(_delete_=True, **loss),
        'train_dataloader.collate_fn': dict(type='default_collate')})
    runner.train()
    assert batches.sides == drawn(12, seed=5) != drawn(12), 'a seed that is given counts'
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').data[0]).all()


def test_accumulated_iterations_share_a_size(tmp_path, images):
    batches = Batches()
    build_runner(tmp_path, images, hooks=[batches], options={'optim_wrapper.accumulative_counts': 4}).train()
    assert batches.sides == [side for side in drawn(3) for _ in range(4)]


def test_a_schedule_by_epochs(tmp_path, images):
    batches = Batches()
    build_runner(tmp_path, images, dict(schedule=[(0, 64), (1, 96)]), hooks=[batches]).train()
    assert batches.sides == [64] * 6 + [96] * 6


def test_the_crop_itself_has_the_size(images):
    """A crop of the drawn size from the image, not one of another size that is resampled."""
    from mmengine.dataset import Compose
    from mmpretrain.registry import DATASETS, TRANSFORMS

    def build(scale):
        pipeline = Compose([TRANSFORMS.build(step) for step in (
            dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=scale), dict(type='PackInputs'))])
        dataset = DATASETS.build(dict(type='CustomDataset', data_prefix=str(images), pipeline=[]))
        dataset.pipeline = pipeline
        return dataset

    dataset = ResolutionDataset(build(224))
    for size in (32, 288):
        np.random.seed(0)
        ours = dataset[3, size]['inputs']
        np.random.seed(0)
        assert (ours == build(size)[3]['inputs']).all() and ours.shape == (3, size, size)


# The same on all processes


@pytest.mark.slow
@pytest.mark.two_processes
def test_two_processes_have_the_sizes_of_one(tmp_path, images):
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
         str(ROOT / 'tests' / 'helpers' / 'resolution_training.py'), str(tmp_path), str(images)],
        capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f'rank_{rank}.json').read_text()) for rank in (0, 1))
    # 12 images in batches of 2 on 2 processes: 3 iterations an epoch
    expected = [[iteration, [[side, side]]] for iteration, side in enumerate(drawn(12))]
    assert [batch[:2] for batch in first] == expected == [batch[:2] for batch in second]
    assert [batch[2] for batch in first] != [batch[2] for batch in second], 'each has images of its own'


# The same after an interruption


FAST = [dict(type='FastRandomResizedCrop', scale=224, flip_prob=0.5),
        dict(type='FastRandAugment', policies='timm_increasing', num_policies=2, magnitude_level=7),
        dict(type='PackInputs')]


@pytest.mark.parametrize('iteration, options', [(5, {}), (8, {'train_dataloader.dataset.pipeline': FAST})])
def test_a_resumed_training_draws_what_it_would_have_drawn(tmp_path, images, iteration, options):
    whole_batches, left_batches, resumed_batches = Batches(), Batches(), Batches()
    whole = build_runner(tmp_path / 'whole', images, hooks=[whole_batches], options=options)
    whole.train()
    train_until_left(build_runner(tmp_path / 'left', images, hooks=[left_batches, SignalAt(iteration)],
                                  options=options))
    resumed = build_runner(tmp_path / 'left', images, hooks=[resumed_batches], options={'resume': True, **options})
    resumed.train()
    assert left_batches.seen + resumed_batches.seen == whole_batches.seen, 'sizes and pixels'
    assert len(left_batches.seen) == iteration + 1
    assert fingerprint(resumed.model) == fingerprint(whole.model)


def test_a_resumed_training_with_workers_and_a_seed_of_its_own(tmp_path, images):
    """The seed that mmengine draws is another one after the interruption; that of the checkpoint counts."""
    left, resumed = Batches(), Batches()
    options = {'randomness': dict(_delete_=True, seed=None)}
    train_until_left(build_runner(tmp_path, images, hooks=[left, SignalAt(8)], workers=2, options=options))
    runner = build_runner(tmp_path, images, hooks=[resumed], workers=2, options={'resume': True, **options})
    drawn_anew = runner.seed
    runner.train()
    seed = runner.message_hub.get_info('train_resolution_seed')
    assert seed != drawn_anew
    assert left.sides + resumed.sides == drawn(12, seed)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_loop_over_iterations_draws_and_resumes(tmp_path, images, workers):
    left, resumed = Batches(), Batches()
    train_until_left(build_runner(tmp_path, images, hooks=[left, SignalAt(3)], workers=workers, iterations=8))
    build_runner(tmp_path, images, hooks=[resumed], workers=workers, iterations=8, options={'resume': True}).train()
    assert [iteration for iteration, *_ in left.seen + resumed.seen] == list(range(8))
    assert left.sides + resumed.sides == drawn(8)


def test_a_loop_over_iterations_that_skips_no_data_draws_as_well(tmp_path, images):
    """mmengine's newer loops can start the data anew on resuming; the resolutions still are those of the iterations."""
    if 'fast_forward_on_resume' not in inspect.signature(IterBasedTrainLoop).parameters:
        pytest.skip('this mmengine always goes through the data that a resumed training has had')
    left, resumed = Batches(), Batches()
    train_until_left(build_runner(tmp_path, images, hooks=[left, SignalAt(3)], iterations=8))
    build_runner(tmp_path, images, hooks=[resumed], iterations=8,
                 options={'resume': True, 'train_cfg.fast_forward_on_resume': True}).train()
    assert left.sides + resumed.sides == drawn(8)


def test_the_next_pass_of_a_loop_over_iterations_goes_on():
    batches = ResolutionBatchSampler([[0, 1], [2]], dict(enumerate(drawn(4))).get)
    passes = list(batches) + list(batches)
    assert len(batches) == 2
    assert passes == [[(0, drawn(4)[0]), (1, drawn(4)[0])], [(2, drawn(4)[1])],
                      [(0, drawn(4)[2]), (1, drawn(4)[2])], [(2, drawn(4)[3])]]


# Pipelines and data sets

CROP = dict(type='RandomResizedCrop', scale=224)
TORCHVISION = [dict(type='NumpyToPIL', to_rgb=True), dict(type='torchvision/RandomResizedCrop', size=224),
               dict(type='PILToNumpy', to_bgr=True)]


def dataset_of(images, *steps, **wrapper):
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import DATASETS
    init_default_scope('mmpretrain')
    pipeline = [dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')]
    inner = dict(type='CustomDataset', data_prefix=str(images), pipeline=pipeline)
    if wrapper.get('type') == 'ConcatDataset':
        return DATASETS.build(dict(wrapper, datasets=[inner, inner]))
    return DATASETS.build(dict(wrapper, dataset=inner) if wrapper else inner)


@pytest.mark.parametrize('steps', [
    [CROP],
    [dict(CROP, type='EfficientNetRandomCrop')],
    TORCHVISION,
    [dict(type='RandomApply', transforms=[CROP], prob=1.)],
    [dict(type='MultiView', num_views=2, transforms=[[CROP]])],
    [CROP, dict(type='RandAugment', policies='timm_increasing', num_policies=2, magnitude_level=7)],
    [dict(CROP, type='FastRandomResizedCrop')],
])
@pytest.mark.parametrize('size', [32, 96])
def test_crops_that_are_known(images, steps, size):
    dataset = ResolutionDataset(dataset_of(images, *steps))
    inputs = dataset[0, size]['inputs']
    views = inputs if isinstance(inputs, list) else [inputs]
    assert [tuple(view.shape) for view in views] == [(3, size, size)] * len(views)
    assert len(views) == (2 if steps[0]['type'] == 'MultiView' else 1)


@pytest.mark.parametrize('wrapper, length', [
    (dict(type='RepeatDataset', times=3), 36),
    (dict(type='ConcatDataset'), 24),
    (dict(type='KFoldDataset', num_splits=2), 6),
])
def test_wrapped_data_sets(images, wrapper, length):
    dataset = ResolutionDataset(dataset_of(images, CROP, **wrapper))
    assert len(dataset) == length and dataset.metainfo['classes'] == ('class_0', 'class_1')
    for index in (0, length - 1):
        assert dataset[index, 64]['inputs'].shape == (3, 64, 64)


@pytest.mark.parametrize('steps, message', [
    ([dict(type='Resize', scale=224)], r"CustomDataset, .*; it has 0: \['LoadImageFromFile', 'Resize', 'PackInputs'\]"),
    ([CROP, CROP], 'exactly one RandomResizedCrop in the train pipeline of CustomDataset.*it has 2'),
])
def test_a_training_without_exactly_one_crop_does_not_start(tmp_path, images, steps, message):
    pipeline = [dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')]
    batches = Batches()
    runner = build_runner(tmp_path, images, hooks=[batches], options={'train_dataloader.dataset.pipeline': pipeline})
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert batches.seen == []


def test_a_pipeline_that_resizes_again_is_an_error(images):
    dataset = ResolutionDataset(dataset_of(images, CROP, dict(type='Resize', scale=64)))
    assert dataset[0, 64]['inputs'].shape == (3, 64, 64)
    with pytest.raises(ValueError, match=r'resolution is 96, .* gives images of \(64, 64\): no step after'):
        dataset[0, 96]


def test_a_sampler_without_a_seed_is_an_error(tmp_path, images):
    runner = build_runner(tmp_path, images)
    runner.build_train_loop(runner._train_loop)
    runner.train_loop.dataloader.batch_sampler.sampler.seed = None
    with pytest.raises(ValueError, match='DefaultSampler, has no seed that all processes share'):
        runner.train()


def test_a_recipe_may_exchange_the_pipeline(tmp_path, images):
    """mmpretrain's SwitchRecipeHook puts another pipeline into the data set while the training runs."""
    batches = Batches()
    pipeline = [dict(type='LoadImageFromFile'), CROP, dict(type='RandomFlip', prob=1.), dict(type='PackInputs')]
    runner = build_runner(tmp_path, images, hooks=[batches], workers=2)
    from mmpretrain.engine import SwitchRecipeHook
    hook = SwitchRecipeHook([dict(action_epoch=1, train_pipeline=pipeline)])
    runner.register_hook(hook)
    runner.train()
    assert batches.sides == drawn(12)
    assert 'RandomFlip' in repr(runner.train_loop.dataloader.dataset.dataset.pipeline)
