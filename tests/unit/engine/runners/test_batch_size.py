# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""``images_per_gpu`` keeps the batch of the recipe on any number of GPUs."""
import pytest
from mmengine.config import Config

from partialnet_mm.engine.runners.batch_size import apply_images_per_gpu, count_processes, describe_batch
from tests.helpers.libraries import ROOT


def recipe(arch='s', **options):
    cfg = Config.fromfile(ROOT / f'configs/pretrain/partialnet_{arch}_in1k.py')
    cfg.merge_from_dict(options)
    return cfg


@pytest.mark.parametrize('arch, images, processes, counts', [
    ('s', 512, 8, 1), ('s', 64, 8, 8), ('s', 128, 1, 32), ('l', 32, 4, 16), ('l', 256, 8, 1), ('t0', 1024, 4, 1)])
def test_the_batch_stays(arch, images, processes, counts):
    cfg = recipe(arch, images_per_gpu=images)
    applied = apply_images_per_gpu(cfg, processes)
    batch = cfg.auto_scale_lr.base_batch_size
    assert (applied.train_dataloader.batch_size, applied.optim_wrapper.accumulative_counts) == (images, counts)
    assert images * processes * counts == batch
    # what a training saves and reads again stays as it is
    assert apply_images_per_gpu(applied, processes).to_dict() == applied.to_dict()
    # schedule, learning rate and clipping are the recipe's; the given config is not changed
    assert applied.param_scheduler == cfg.param_scheduler
    assert {**applied.optim_wrapper, 'accumulative_counts': None} == {**cfg.optim_wrapper, 'accumulative_counts': None}
    assert 'accumulative_counts' not in cfg.optim_wrapper
    assert describe_batch(applied, processes) == (
        f'batch: {images} images per GPU x {processes} GPU(s) x {counts} accumulated step(s) = {batch}')


def test_without_the_setting_nothing_changes():
    cfg = recipe()
    assert cfg.images_per_gpu is None and apply_images_per_gpu(cfg, 3) is cfg


@pytest.mark.parametrize('options, processes, message', [
    (dict(images_per_gpu=100), 8, 'images_per_gpu=100 does not give the batch of 4096 on 8 GPUs; allowed are the '
                                  'divisors of 512'),
    (dict(images_per_gpu=1024), 8, 'divisors of 512'),
    (dict(images_per_gpu=0), 8, 'images_per_gpu=0'),
    (dict(images_per_gpu=True), 8, 'images_per_gpu=True'),
    (dict(images_per_gpu='64'), 8, "images_per_gpu='64'"),
    (dict(images_per_gpu=64), 3, 'none, because 3 GPUs do not divide it'),
    ({'images_per_gpu': 64, 'auto_scale_lr.enable': True}, 8, 'no learning rate to scale'),
    ({'images_per_gpu': 64, 'auto_scale_lr.base_batch_size': None}, 8, 'the config has none'),
    ({'images_per_gpu': 64, 'train_cfg.type': 'IterBasedTrainLoop'}, 8, 'counts iterations'),
    ({'images_per_gpu': 64, 'param_scheduler': [dict(type='LinearLR', by_epoch=False, end=500)]}, 8,
     'counts iterations'),
])
def test_what_cannot_keep_the_batch_is_refused(options, processes, message):
    with pytest.raises(ValueError, match=message):
        apply_images_per_gpu(recipe(**options), processes)


@pytest.mark.parametrize('options, end', [
    ({}, '512 images per GPU x 2 GPU(s) x 1 accumulated step(s) = 1024; the learning rate is that of 4096: '
         '--auto-scale-lr scales it, --cfg-options images_per_gpu=N keeps the batch of 4096'),
    ({'auto_scale_lr.enable': True}, '= 1024; the learning rate is scaled from that of 4096 by images per GPU x GPUs'),
    ({'train_dataloader.batch_size': None}, 'as the batch_sampler of train_dataloader makes it'),
])
def test_another_batch_is_named(options, end):
    assert describe_batch(recipe(**options), 2).endswith(end)


@pytest.mark.parametrize('launcher, variable', [
    ('pytorch', 'WORLD_SIZE'), ('slurm', 'SLURM_NTASKS'), ('mpi', 'OMPI_COMM_WORLD_SIZE'), ('none', 'ELSEWHERE')])
def test_processes_are_counted_before_they_communicate(launcher, variable, monkeypatch):
    for name in ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    assert count_processes(launcher) == 1
    monkeypatch.setenv(variable, '4')
    assert count_processes(launcher) == (1 if launcher == 'none' else 4)
