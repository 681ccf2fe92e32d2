# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""How many images of the pretraining a card takes."""
import argparse

import pytest

from partialnet_mm.analysis import training_memory
from partialnet_mm.analysis.training_memory import GIB, MIB, images_per_gpu


def arguments(*words):
    parser = argparse.ArgumentParser()
    training_memory.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize('share, per_image, parameters, card, images', [
    (512, 10 * MIB, 0, 16, 512),   # 0.9 x 16 - 1 = 13.4 GiB, and 512 images need 5
    (512, 30 * MIB, 0, 16, 256),   # 457 images fit; 256 is the next divisor
    (96, 300 * MIB, 0, 16, 32),    # 45 fit
    (512, 10 * MIB, 2**26, 2, None),   # 1.8 - 1 - 1.125 GiB
    (512, GIB, 0, 2, None)])
def test_as_many_as_fit_and_divide_the_batch(share, per_image, parameters, card, images):
    assert images_per_gpu(share, per_image, parameters, card) == images


def test_the_report_counts_and_divides():
    pytest.importorskip('mmpretrain')
    args = arguments('t0', '--sizes', '64', '--cards', '2', '80', '--gpus', '4')
    training_memory.check(args)
    kept, *cards = (table for table in training_memory.report(args).split('\n\n') if table.startswith('|'))
    _, size, plain, norm_act, full, *ratios = [cell.strip() for cell in kept.splitlines()[2].strip('|').split('|')]
    assert size == '64' and float(full) < float(norm_act) < float(plain)
    assert 0 < float(ratios[1]) < float(ratios[0]) < 0.6
    assert len(cards) == 3
    for table in cards:
        row = [cell.strip() for cell in table.splitlines()[2].strip('|').split('|')]
        assert row[:2] == ['t0', '4096'] and row[3] == '1024 x 1'
        images, steps = map(int, row[2].split(' x '))
        assert images * steps * 4 == 4096


@pytest.mark.parametrize('words, message', [
    (('t9', ), "no recipe for 't9': allowed are t0, t1"), (('t0', '--sizes', '16'), 'at least 32, got 16'),
    (('m', '--gpus', '3'), '--gpus 3 does not divide the batch of m, 2048')])
def test_wrong_arguments_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        training_memory.check(arguments(*words))
