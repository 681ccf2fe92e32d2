# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import re

import pytest
import torch
from mmengine.structures import BaseDataElement

from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.engine import FiniteHook
from partialnet_mm.engine.hooks.finite_hook import describe_batch
from tests.helpers.toy_training import build_runner


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


def test_a_nan_stops_with_its_place_and_batch(tmp_path):
    with pytest.raises(FloatingPointError) as stopped:
        build_runner(tmp_path, model=dict(nan_at=5)).train()
    message = str(stopped.value)
    assert message.startswith('loss nan, loss_cls nan at iteration 5 (epoch 2, rank 0)')
    assert re.findall(r'iteration (\d): loss', message) == ['1', '2', '3', '4']
    batch = read_checkpoint(re.search(r"the batch is in '(.*?)'", message).group(1))
    assert torch.stack(list(batch['inputs'])).shape == (4, 3, 32, 32)
    assert names(tmp_path) == ['epoch_1.pth']


def test_resuming_goes_on_from_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError):
        build_runner(tmp_path, model=dict(nan_at=5)).train()
    runner = build_runner(tmp_path, resume=True)
    runner.train()
    assert runner.iter == 12


def test_ruined_weights_are_not_saved(tmp_path):
    # The loss of the epoch's last iteration is finite; the update after it ruins a weight.
    with pytest.raises(FloatingPointError, match=r"weights are not finite at iteration 6, .*no checkpoint is written"):
        build_runner(tmp_path, model=dict(ruin_at=6)).train()
    assert names(tmp_path) == ['epoch_1.pth']


@pytest.mark.parametrize('losses, stops', [
    (dict(loss=torch.tensor(1.), acc=torch.tensor(float('nan'))), False),
    (dict(loss=torch.tensor(float('inf'))), True),
    (dict(loss=1., loss_mask=float('-inf')), True),
    ({}, False),
    (None, False),
])
def test_only_losses_count(tmp_path, losses, stops):
    runner = build_runner(tmp_path)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    hook = FiniteHook()
    if stops:
        with pytest.raises(FloatingPointError, match='inf at iteration 1'):
            hook.after_train_iter(runner, 0, dict(inputs=[]), losses)
    else:
        hook.after_train_iter(runner, 0, dict(inputs=[]), losses)


def test_the_images_of_the_batch_are_named():
    samples = [BaseDataElement(metainfo=dict(img_path=f'images/{i}.jpg')) for i in range(2)]
    batch = describe_batch(dict(inputs=[torch.zeros(3, 2, 2)], data_samples=samples))
    assert batch['img_paths'] == ['images/0.jpg', 'images/1.jpg']
    assert 'images/1.jpg' in batch['data_samples'][1]
    assert describe_batch([1, 2]) == dict(inputs=None, img_paths=[], data_samples=['[1, 2]'])
