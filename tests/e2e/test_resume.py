# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A training that goes on computes what it would have computed without the interruption, to the last bit."""
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.engine import EXIT_PREEMPTED, CrashSafeCheckpointHook
from tests.helpers.libraries import ROOT
from tests.helpers.toy_training import (  # noqa: F401
    Images,
    SignalAt,
    build_runner,
    fingerprint,
    former_handlers,
    hash_of,
)

SCRIPT = ROOT / 'tests' / 'helpers' / 'toy_training.py'


def copy_of(work_dir, name, *files):
    """A new work directory with some of the checkpoints of another."""
    folder = work_dir.parent / name
    folder.mkdir()
    for file in files:
        shutil.copy(work_dir / file, folder)
    return folder


class Batches(Hook):
    """Notes the iterations that were trained."""

    def __init__(self):
        self.iterations = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.iterations.append(runner.iter)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The work directory of an undisturbed training with all its checkpoints, and the hash of its final weights."""
    folder = tmp_path_factory.mktemp('whole') / 'whole'
    runner = build_runner(folder, checkpoint=dict(max_keep_ckpts=-1))
    runner.train()
    return folder, fingerprint(runner.model)


@pytest.mark.parametrize('workers, persistent', [(0, False), (2, False), (2, True)])
def test_resumed_at_an_epochs_end_is_bit_equal(tmp_path, workers, persistent):
    options = dict(workers=workers, persistent=persistent, checkpoint=dict(max_keep_ckpts=-1))
    whole = build_runner(tmp_path / 'whole', **options)
    whole.train()
    for epoch in (1, 3):
        folder = copy_of(tmp_path / 'whole', f'resumed_{epoch}', f'epoch_{epoch}.pth')
        resumed = build_runner(folder, resume=True, **options)
        resumed.train()
        assert multiprocessing.active_children() == []  # workers that persist leave with the training
        assert (resumed.epoch, resumed.iter) == (4, 12)
        assert fingerprint(resumed.model) == fingerprint(whole.model)


@pytest.mark.parametrize('persistent', [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_error_ends_the_workers_at_once(tmp_path, persistent):
    """They outlive a SIGTERM, by which Python would end them, until an alarm goes off."""
    code = ('import sys\n'
            'from tests.helpers.toy_training import build_runner\n'
            'from mmengine.hooks import Hook\n'
            'class Fails(Hook):\n'
            '    def before_train_iter(self, runner, batch_idx, data_batch=None):\n'
            '        if batch_idx == 1:\n'
            "            raise RuntimeError('as planned')\n"
            f'build_runner(sys.argv[1], workers=2, persistent={persistent}, hooks=[Fails()]).train()\n')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, timeout=120,
                          cwd=ROOT)
    assert done.returncode == 1 and 'RuntimeError: as planned' in done.stderr
    assert 'Alarm clock' not in done.stderr


def test_a_seed_that_was_drawn_is_resumed(tmp_path):
    whole = build_runner(tmp_path / 'whole', seed=None)
    whole.train()
    resumed = build_runner(copy_of(tmp_path / 'whole', 'resumed', 'epoch_2.pth'), resume=True, seed=None)
    drawn_anew = resumed.seed
    resumed.train()
    assert drawn_anew != whole.seed
    assert fingerprint(resumed.model) == fingerprint(whole.model)
    other = build_runner(tmp_path / 'other', seed=None)
    other.train()
    assert fingerprint(other.model) != fingerprint(whole.model), 'the training does depend on its random numbers'


def test_handlers_are_given_back_after_training(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    build_runner(tmp_path, epochs=1).train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_the_random_numbers_the_weights_differ(whole, tmp_path):
    (tmp_path / 'resumed').mkdir()
    folder = Path(shutil.copy(whole[0] / 'epoch_2.pth', tmp_path / 'resumed')).parent
    checkpoint = torch.load(folder / 'epoch_2.pth', weights_only=False)
    del checkpoint['meta']['random_states']
    torch.save(checkpoint, folder / 'epoch_2.pth')
    resumed = build_runner(folder, resume=True)
    resumed.train()
    assert fingerprint(resumed.model) != whole[1]


def test_workers_draw_anew_in_each_epoch(tmp_path):
    class Noise(Images):
        def __getitem__(self, index):
            return dict(super().__getitem__(0), labels=index % 2)

    class FirstImages(Hook):
        def __init__(self):
            self.images = []

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.images.append(data_batch['inputs'][0])

    seen = FirstImages()
    build_runner(tmp_path, epochs=3, workers=1, val=False, hooks=[seen], dataset=Noise(4)).train()
    assert len(seen.images) == 3
    assert not torch.equal(seen.images[0], seen.images[1])
    assert not torch.equal(seen.images[1], seen.images[2])


@pytest.mark.parametrize('iteration, number', [(0, signal.SIGTERM), (4, signal.SIGUSR1), (5, signal.SIGTERM),
                                               (6, signal.SIGUSR1)])
def test_a_signal_saves_and_what_follows_is_bit_equal(whole, tmp_path, iteration, number):
    with pytest.raises(SystemExit) as left:
        build_runner(tmp_path / 'left', hooks=[SignalAt(iteration, number=number)]).train()
    assert left.value.code == EXIT_PREEMPTED == 75
    saved = tmp_path / 'left' / f'epoch_{iteration // 3}_iter_{iteration + 1}.pth'
    assert Path((tmp_path / 'left' / 'last_checkpoint').read_text()) == saved
    assert read_checkpoint(str(saved))['meta']['iter'] == iteration + 1

    batches = Batches()
    resumed = build_runner(tmp_path / 'left', resume=True, hooks=[batches])
    resumed.train()
    assert batches.iterations == list(range(iteration + 1, 12)), 'no batch twice, none left out'
    assert fingerprint(resumed.model) == whole[1]


def test_preemption_needs_a_hook_that_saves(tmp_path):
    runner = build_runner(tmp_path)
    runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, CrashSafeCheckpointHook)]
    with pytest.raises(ValueError, match="PreemptionHook needs default_hooks.checkpoint"):
        runner.train()


def test_a_second_signal_in_the_same_epoch(tmp_path):
    whole = build_runner(tmp_path / 'whole', length=24)
    whole.train()
    for iteration in (7, 9):
        with pytest.raises(SystemExit):
            build_runner(tmp_path / 'left', length=24, resume=True, hooks=[SignalAt(iteration)]).train()
    resumed = build_runner(tmp_path / 'left', length=24, resume=True)
    resumed.train()
    assert fingerprint(resumed.model) == fingerprint(whole.model)


class Validations(Hook):
    """Notes the epochs whose validation was completed."""

    def __init__(self):
        self.epochs = []

    def after_val_epoch(self, runner, metrics=None):
        self.epochs.append(runner.epoch)


@pytest.mark.parametrize('epoch', [2, 4])
def test_a_signal_in_validation_leaves_at_once_and_the_validation_is_repeated(whole, tmp_path, epoch):
    """Also after the last epoch, when nothing else is left to do."""
    with pytest.raises(SystemExit) as left:
        build_runner(tmp_path, hooks=[SignalAt(validation=epoch)]).train()
    assert left.value.code == EXIT_PREEMPTED
    assert (tmp_path / f'epoch_{epoch}.pth').exists() and not (tmp_path / f'epoch_{epoch + 1}.pth').exists()
    for epochs in (list(range(epoch, 5)), []):  # a second time, all is done
        validations = Validations()
        resumed = build_runner(tmp_path, resume=True, hooks=[validations])
        resumed.train()
        assert validations.epochs == epochs
        assert fingerprint(resumed.model) == whole[1]


def test_a_signal_in_validation_waits_when_the_epoch_is_not_saved(tmp_path):
    with pytest.raises(SystemExit):
        build_runner(tmp_path, hooks=[SignalAt(validation=1)], checkpoint=dict(interval=2)).train()
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_1_iter_4.pth']


@pytest.mark.parametrize('sampler, workers', [('DefaultSampler', 0), ('DefaultSampler', 2), ('InfiniteSampler', 2)])
def test_a_loop_over_iterations_goes_on_bit_equal(tmp_path, sampler, workers):
    """In its second pass through the images, or what would be one."""
    options = dict(iterations=12, length=20, batch_size=3, val=False, workers=workers, sampler=sampler,
                   checkpoint=dict(interval=3))
    whole = build_runner(tmp_path / 'whole', **options)
    whole.train()
    with pytest.raises(SystemExit):
        build_runner(tmp_path / 'left', hooks=[SignalAt(7)], **options).train()
    assert sorted(p.name for p in (tmp_path / 'left').glob('*.pth')) == ['iter_3.pth', 'iter_6.pth', 'iter_8.pth']
    batches = Batches()
    resumed = build_runner(tmp_path / 'left', resume=True, hooks=[batches], **options)
    resumed.train()
    assert batches.iterations == [8, 9, 10, 11]
    assert fingerprint(resumed.model) == fingerprint(whole.model)


@pytest.mark.parametrize('workers', [0, 2])
def test_the_middle_of_an_epoch_is_bit_equal_with_accumulated_gradients(tmp_path, workers):
    options = dict(epochs=2, length=20, batch_size=2, accumulate=4, workers=workers)
    whole = build_runner(tmp_path / 'whole', **options)
    whole.train()
    with pytest.raises(SystemExit):
        build_runner(tmp_path / 'left', hooks=[SignalAt(12)], **options).train()
    assert len(read_checkpoint(str(tmp_path / 'left' / 'epoch_1_iter_13.pth'))['gradients']) == 1
    resumed = build_runner(tmp_path / 'left', resume=True, **options)
    resumed.train()
    assert fingerprint(resumed.model) == fingerprint(whole.model)


class NumberedImages(Images):
    def __getitem__(self, index):
        return dict(super().__getitem__(index), number=index)


class Seen(Hook):
    """Notes which images were trained on, by epoch."""

    priority = 'LOWEST'

    def __init__(self):
        self.epochs = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.epochs.setdefault(runner.epoch, []).extend(data_batch.pop('number'))


@pytest.mark.parametrize('iterations, batch_size, left, reason', [
    (None, 8, 24, ''),
    (8, 8, 16, ''),
    (8, 2, 16, ''),
    (9, 8, 24, '12 images of the epoch are done, and no batch of 8 images starts there. The epoch starts anew'),
])
def test_another_batch_size_goes_on_at_the_same_image(tmp_path, capfd, iterations, batch_size, left, reason):
    """24 images in batches of 4, from the start of the second epoch or from its middle on."""
    seen, resumed = Seen(), Seen()
    options = dict(val=False, dataset=NumberedImages(24))
    if iterations is None:
        build_runner(tmp_path, epochs=1, hooks=[seen], **options).train()
    else:
        with pytest.raises(SystemExit):
            build_runner(tmp_path, epochs=2, hooks=[seen, SignalAt(iterations - 1)], **options).train()
    runner = build_runner(tmp_path, epochs=2, resume=True, batch_size=batch_size, hooks=[resumed], **options)
    runner.train()
    assert list(resumed.epochs) == [1] and len(resumed.epochs[1]) == left
    before = [] if reason else seen.epochs.get(1, [])
    assert sorted(before + resumed.epochs[1]) == list(range(24))
    assert runner.iter == 2 * 24 // batch_size
    output = ''.join(capfd.readouterr())
    assert reason in output and ('starts anew' in output) == bool(reason)


def test_a_loop_over_iterations_goes_on_at_the_same_image(tmp_path):
    seen, resumed = Seen(), Seen()
    options = dict(val=False, dataset=NumberedImages(24), iterations=6, sampler='InfiniteSampler')
    with pytest.raises(SystemExit):
        build_runner(tmp_path, hooks=[seen, SignalAt(3)], **options).train()
    build_runner(tmp_path, resume=True, hooks=[resumed], **dict(options, batch_size=8, iterations=5)).train()
    assert sorted(seen.epochs[0] + resumed.epochs[0]) == list(range(24))


def start(*command):
    """A process in a group of its own, with what it prints."""
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, env=environment, start_new_session=True)


def test_a_sigterm_to_all_processes_of_a_job_saves(tmp_path):
    process = start(SCRIPT, tmp_path, '--workers', '2', '--step-time', '0.3')
    wait_for(tmp_path / 'epoch_1.pth', process)
    while len(children(process)) < 2:  # the workers of the loaders
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED, output[-4000:]
    saved = (tmp_path / 'last_checkpoint').read_text()
    assert read_checkpoint(saved)['meta']['iter'] >= 3


def torchrun(work_dir, *arguments, wait=True):
    """Two processes over gloo."""
    process = start('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', SCRIPT, work_dir,
                    '--launcher', 'pytorch', *arguments)
    if not wait:
        return process
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-4000:]
    return output


def children(process):
    """Processes that torchrun has started, by their ids."""
    listed = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def wait_for(path, process, seconds=60):
    """Waits until a checkpoint is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end, f'{path} did not come'
        time.sleep(0.02)


@pytest.fixture(scope='module')
def of_two(tmp_path_factory):
    """The work directory of a training in two processes."""
    folder = tmp_path_factory.mktemp('two') / 'whole'
    torchrun(folder)
    return folder


@pytest.mark.slow
@pytest.mark.two_processes
def test_two_processes_resume_bit_equal(of_two):
    folder = copy_of(of_two, 'resumed', 'epoch_2.pth')
    torchrun(folder, '--resume')
    first, second = (read_checkpoint(str(path / 'epoch_4.pth')) for path in (of_two, folder))
    assert hash_of(first['state_dict']) == hash_of(second['state_dict'])


@pytest.mark.two_processes
def test_a_training_of_one_process_goes_on_with_two(whole, tmp_path):
    """12 images in batches of 4: epochs of 3 iterations become epochs of 2, and none is skipped or cut."""
    shutil.copy(whole[0] / 'epoch_1.pth', tmp_path)
    torchrun(tmp_path, '--resume')
    metas = [read_checkpoint(str(tmp_path / f'epoch_{epoch}.pth'))['meta'] for epoch in (2, 3, 4)]
    assert [meta['iter'] for meta in metas] == [4, 6, 8]
    logs = ''.join(path.read_text() for path in tmp_path.glob('*/vis_data/scalars.json'))
    assert logs.count('"loss"') == 6


@pytest.mark.two_processes
def test_a_signal_to_one_of_two_processes_stops_both_and_loses_nothing(of_two, tmp_path):
    process = torchrun(tmp_path / 'left', '--step-time', '0.2', wait=False)
    wait_for(tmp_path / 'left' / 'epoch_1.pth', process)
    os.kill(children(process)[1], signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, 'torchrun knows no other status for a process that leaves'
    assert 'exitcode  : 75' in output, output[-4000:]
    torchrun(tmp_path / 'left', '--resume')
    first, second = (read_checkpoint(str(path / 'epoch_4.pth')) for path in (of_two, tmp_path / 'left'))
    assert len(first['meta']['random_states']) == 2
    assert hash_of(first['state_dict']) == hash_of(second['state_dict'])


@pytest.mark.slow
@pytest.mark.two_processes
def test_a_killed_process_ends_the_run(tmp_path):
    process = torchrun(tmp_path, '--step-time', '0.2', wait=False)
    wait_for(tmp_path / 'epoch_1.pth', process)
    os.kill(children(process)[1], signal.SIGKILL)
    killed = time.monotonic()
    output, _ = process.communicate(timeout=100)
    assert time.monotonic() - killed < 60
    assert process.returncode == 1
    assert 'exitcode  : -9' in output and 'Signal 9 (SIGKILL)' in output, output[-4000:]
