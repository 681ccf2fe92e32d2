# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What backbones and detectors cost on images of detection, by the command that prints it."""
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import load_tool, run_main

TOOL = 'tools/analysis_tools/dense_cost.py'
DETECTOR = ROOT / 'configs' / 'mask_rcnn' / 'partialnet_t0_shapes.py'
Rows = list[list[str]]


def rows_of(out: str) -> Rows:
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in out.splitlines()
            if line.startswith('|') and not line.startswith('|---')]


@pytest.fixture
def measure(monkeypatch, capsys) -> Iterator[Callable[..., Rows]]:
    """Runs the command in this process, where memory cannot be measured, and gives the rows that it prints."""
    pytest.importorskip('timm')

    def run(*options: object, **replaced: object) -> Rows:
        assert run_main(monkeypatch, TOOL, *options, '--device', 'cpu', '--threads', '1', **replaced) == 0
        return rows_of(capsys.readouterr().out)

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_backbones(measure):
    bytes_of = {'partialnet_t0': 3, 'fasternet_t0': 4, 'resnet18': 8}
    measured = []

    def in_own_process(function, name, work, batch, args):
        measured.append((name, work, batch))
        return bytes_of[name] * batch * 2**20

    rows = measure('partialnet_t0', 'fasternet_t0', '--reference', 'resnet18', '--size', '64', '96', '--rounds', '2',
                   '--batch', '1', '2', in_own_process=in_own_process)[1:]
    cases = [(work, batch) for work in ('inference', 'training') for batch in (1, 2)]
    assert measured == [(name, *case) for case in cases for name in bytes_of]
    assert [row[:3] for row in rows] == [[name, f'{batch} x 64 x 96', work] for work, batch in cases
                                         for name in bytes_of]
    for name, images, _, seconds, ratio, over_peer, memory, over_memory in rows:
        low, high = map(float, seconds.split('(')[1].rstrip(')').split('-'))
        assert 0 < low <= float(seconds.split()[0]) <= high
        assert bool(over_peer) == (name == 'partialnet_t0')
        assert memory == str(bytes_of[name] * int(images[0])) and over_memory == f'{bytes_of[name] / 8:.2f}'
        assert (ratio == '1.000 (1.000-1.000)') == (name == 'resnet18')


@pytest.mark.parametrize('name, channels', [
    ('partialnet_t0', [32, 64, 128, 256]), ('fasternet_t0', [40, 80, 160, 320]), ('resnet18', [64, 128, 256, 512])])
def test_backbones_return_four_maps(name, channels):
    pytest.importorskip('timm')
    tool = load_tool(TOOL)
    maps = tool.build(name)(torch.zeros(2, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [(c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32))]


def test_inference_is_merged_and_training_leaves_gradients(monkeypatch):
    pytest.importorskip('timm')
    tool = load_tool(TOOL)
    models = []
    make_pass = tool.make_pass
    monkeypatch.setattr(tool, 'make_pass', lambda model, *given: (models.append(model), make_pass(model, *given))[1])
    args = tool.argparse.Namespace(device='cpu', size=(64, 64), channels_last=False, threads=1)
    for work in tool.WORK:
        run, _ = tool.prepare('fasternet_t0', work, 2, args)
        run()
    inference, training = models[0], models[-1]
    assert tool.merge_network(inference, (64, 64)).merged == 0 and not inference.training
    assert training.training and all(p.grad is not None for p in training.parameters())


def test_detectors(measure):
    pytest.importorskip('mmdet')
    options = ('--only-detectors', '--detectors', DETECTOR, '--size', '64', '96', '--rounds', '1', '--batch', '1')
    header, row = measure(*options, '--score-thr', '0.999')
    assert header[3] == 'time over mask_rcnn/partialnet_t0_shapes (quartiles)'
    assert row[:2] == ['mask_rcnn/partialnet_t0_shapes', '1 x 64 x 96'] and float(row[2]) > 0
    assert row[3:] == ['1.000 (1.000-1.000)', '0']
    assert measure(*options, '--score-thr', '0')[1][4] == '100'  # the most that the config allows


def test_defaults_are_the_papers_pair():
    pytest.importorskip('mmdet')
    mine, theirs = load_tool(TOOL).default_detectors()
    assert mine.samefile(ROOT / 'configs' / 'mask_rcnn' / 'partialnet_s_1x.py')
    assert theirs.name == 'mask-rcnn_r50_fpn_1x_coco.py' and theirs.is_file()


@pytest.mark.parametrize('options, message', [
    (('resnet5000', ), "there is no backbone 'resnet5000'"),
    (('partialnet_x', ), "there is no backbone 'partialnet_x': allowed are partialnet_ARCH with ARCH one of t0"),
    (('--rounds', '0'), '--rounds must be at least 1, got 0'),
    (('--batch', '1', '0'), '--batch must be at least 1 and --size at least 64, got [1, 0]'),
    (('--size', '32', '64'), 'got [1, 2] and [32, 64]'),
    (('--detectors', 'nowhere.py'), "config 'nowhere.py' does not exist"),
    pytest.param(('--device', 'cuda'), '--device cuda: torch sees no GPU',
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is one')),
])
def test_wrong_options(options, message, monkeypatch, capsys):
    pytest.importorskip('timm')
    pytest.importorskip('mmdet')
    assert run_main(monkeypatch, TOOL, *options) == 2
    assert message in ' '.join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own():
    pytest.importorskip('timm')
    done = subprocess.run(
        [sys.executable, TOOL, 'resnet50', '--size', '512', '512', '--rounds', '1', '--threads', '1'], cwd=ROOT,
        capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''))
    assert done.returncode == 0, done.stderr
    one, two, one_step, two_steps = [float(row[6]) for row in rows_of(done.stdout)[1:]]
    # Its largest maps, those of the first stage, have 16 MiB an image: the one that is returned, and in the block after
    # it what goes in and what comes out. Buffers for weights are needed once, whatever the batch.
    assert two - one == pytest.approx(3 * 16, abs=20)
    assert one < 8 * 16
    assert one_step > 5 * one and two_steps > 1.5 * one_step
