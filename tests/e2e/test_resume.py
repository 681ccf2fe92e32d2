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
from partialnet_mm.engine.hooks.epoch_data_hook import remaining_batches
from tests.helpers.libraries import ROOT
from tests.helpers.toy_training import Images, build_runner, fingerprint, hash_of

SCRIPT = ROOT / 'tests' / 'helpers' / 'toy_training.py'


@pytest.fixture(autouse=True)
def former_handlers():
    """A training that leaves keeps its signal handlers, for it is about to exit."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def copy_of(work_dir, name, *files):
    """A new work directory with some of the checkpoints of another."""
    folder = work_dir.parent / name
    folder.mkdir()
    for file in files:
        shutil.copy(work_dir / file, folder)
    return folder


class SignalAt(Hook):
    """Sends a signal to this process in the middle of an iteration, or of a validation."""

    def __init__(self, iteration=None, validation=None, number=signal.SIGUSR1):
        self.iteration = iteration
        self.validation = validation
        self.number = number

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.number)

    def before_val_epoch(self, runner):
        if runner.epoch == self.validation:
            os.kill(os.getpid(), self.number)


class Batches(Hook):
    """Notes the iterations that were trained."""

    def __init__(self):
        self.iterations = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.iterations.append(runner.iter)


@pytest.mark.parametrize('workers, persistent', [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize('epoch', [1, 3])
def test_resumed_at_an_epochs_end_is_bit_equal(tmp_path, workers, persistent, epoch):
    options = dict(workers=workers, persistent=persistent, checkpoint=dict(max_keep_ckpts=-1))
    whole = build_runner(tmp_path / 'whole', **options)
    whole.train()
    folder = copy_of(tmp_path / 'whole', 'resumed', f'epoch_{epoch}.pth')
    resumed = build_runner(folder, resume=True, **options)
    resumed.train()
    assert multiprocessing.active_children() == []  # workers that persist leave with the training
    assert (resumed.epoch, resumed.iter) == (4, 12)
    assert fingerprint(resumed.model) == fingerprint(whole.model)


def test_an_error_ends_persistent_workers_at_once(tmp_path):
    """They outlive a SIGTERM, by which Python would end them, until an alarm goes off."""
    code = ('import sys\n'
            'from toy_training import build_runner\n'
            'from mmengine.hooks import Hook\n'
            'class Fails(Hook):\n'
            '    def before_train_iter(self, runner, batch_idx, data_batch=None):\n'
            '        if batch_idx == 1:\n'
            "            raise RuntimeError('as planned')\n"
            'build_runner(sys.argv[1], workers=2, persistent=True, hooks=[Fails()]).train()\n')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, timeout=120,
                          cwd=Path(__file__).parent)
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


def test_without_the_random_numbers_the_weights_differ(tmp_path):
    whole = build_runner(tmp_path / 'whole')
    whole.train()
    folder = copy_of(tmp_path / 'whole', 'resumed', 'epoch_2.pth')
    checkpoint = torch.load(folder / 'epoch_2.pth', weights_only=False)
    del checkpoint['meta']['random_states']
    torch.save(checkpoint, folder / 'epoch_2.pth')
    resumed = build_runner(folder, resume=True)
    resumed.train()
    assert fingerprint(resumed.model) != fingerprint(whole.model)


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


@pytest.mark.parametrize('iteration', [0, 4, 5, 6])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_what_follows_is_bit_equal(tmp_path, iteration, number):
    whole = build_runner(tmp_path / 'whole')
    whole.train()
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
    assert fingerprint(resumed.model) == fingerprint(whole.model)


def test_the_status_goes_to_a_file_and_is_taken_back_on_resuming(tmp_path, monkeypatch):
    status = tmp_path / 'status'
    monkeypatch.setenv('PARTIALNET_STATUS_FILE', str(status))
    with pytest.raises(SystemExit):
        build_runner(tmp_path / 'work', hooks=[SignalAt(2)]).train()
    assert status.read_text() == '75'
    build_runner(tmp_path / 'work', resume=True).train()
    assert status.read_text() == ''


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


def test_a_signal_in_validation_leaves_at_once_when_the_epoch_is_saved(tmp_path):
    whole = build_runner(tmp_path / 'whole')
    whole.train()
    with pytest.raises(SystemExit) as left:
        build_runner(tmp_path / 'left', hooks=[SignalAt(validation=2)]).train()
    assert left.value.code == EXIT_PREEMPTED
    assert sorted(p.name for p in (tmp_path / 'left').glob('*.pth')) == ['epoch_1.pth', 'epoch_2.pth']
    resumed = build_runner(tmp_path / 'left', resume=True)
    resumed.train()
    assert fingerprint(resumed.model) == fingerprint(whole.model)


def test_a_signal_in_validation_waits_when_the_epoch_is_not_saved(tmp_path):
    with pytest.raises(SystemExit):
        build_runner(tmp_path, hooks=[SignalAt(validation=1)], checkpoint=dict(interval=2)).train()
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_1_iter_4.pth']


def test_a_loop_over_iterations_goes_on(tmp_path):
    with pytest.raises(SystemExit):
        build_runner(tmp_path, iterations=8, length=36, val=False, hooks=[SignalAt(4)],
                     checkpoint=dict(interval=2)).train()
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth', 'iter_5.pth']
    batches = Batches()
    build_runner(tmp_path, iterations=8, length=36, val=False, resume=True, hooks=[batches],
                 checkpoint=dict(interval=2)).train()
    assert batches.iterations == [5, 6, 7]


def test_an_epoch_of_another_length_starts_anew(tmp_path):
    with pytest.raises(SystemExit):
        build_runner(tmp_path, length=24, hooks=[SignalAt(10)]).train()
    batches = Batches()
    build_runner(tmp_path, length=16, resume=True, hooks=[batches]).train()
    assert batches.iterations == list(range(4, 16)), 'epoch 2 of 4 iterations, from its start'


def test_remaining_batches_are_those_of_the_sampler(tmp_path):
    loader = torch.utils.data.DataLoader(Images(10), batch_size=3, shuffle=False)
    rest = remaining_batches(loader, 2)
    state = torch.get_rng_state()
    assert [batch['labels'].tolist() for batch in rest] == [[0, 1, 0], [1]]
    assert torch.equal(state, torch.get_rng_state()), 'an iterator must not use the numbers of the training up'


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


@pytest.mark.two_processes
def test_two_processes_resume_bit_equal(of_two):
    folder = copy_of(of_two, 'resumed', 'epoch_2.pth')
    torchrun(folder, '--resume')
    first, second = (read_checkpoint(str(path / 'epoch_4.pth')) for path in (of_two, folder))
    assert len(first['meta']['random_states']) == 2
    assert hash_of(first['state_dict']) == hash_of(second['state_dict'])


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
    assert hash_of(first['state_dict']) == hash_of(second['state_dict'])


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
