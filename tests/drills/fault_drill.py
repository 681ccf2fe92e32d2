# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Interrupts trainings in every way that a machine does, resumes them, and counts what was lost.

Each trial trains a small PartialNet in a process of its own, has it killed or
its files damaged, resumes it, and compares the final weights with those of a
training without interruption, bit by bit. Files of the user that the trial
puts in the way must be there afterwards.
"""
import argparse
import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from partialnet_mm.checkpoint.reader import read_checkpoint
from tests.helpers.libraries import ROOT
from tests.helpers.toy_training import SignalAt, build_runner, fingerprint, hash_of

EPOCHS = 5
#: Weights that only make checkpoints large: 8 MB, so that a save takes a while.
PADDING = 2_000_000
SCRIPT = ROOT / 'tests' / 'helpers' / 'toy_training.py'
PROCESSES = multiprocessing.get_context('fork')


class Outcome(NamedTuple):
    """Of one trial.

    Epochs lost (None if the resumed training did not finish), weights equal, killed in a save, what else is wrong.
    """

    lost: int | None
    equal: bool
    in_save: bool = False
    wrong: str = ''


class Reports(Hook):
    """Reports a training's progress through a pipe: where it starts, when it saves, what it ends with."""

    priority = 'LOWEST'

    def __init__(self, pipe: object) -> None:
        self.pipe = pipe

    def before_train(self, runner: Runner) -> None:
        self.pipe.send(('start', runner.epoch))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.pipe.send(('save', checkpoint['meta']['epoch']))

    def after_train_epoch(self, runner: Runner) -> None:
        self.pipe.send(('saved', runner.epoch + 1))

    def after_train(self, runner: Runner) -> None:
        self.pipe.send(('end', fingerprint(runner.model)))


class WaitFor(Hook):
    """Holds a training in its second epoch until a file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        while runner.epoch == 1 and not self.path.exists():
            time.sleep(0.05)


def train(work_dir: str, pipe: object, prepare: Callable[[], None] | None, options: dict) -> None:
    """What a trial's process does; it exits with the status of its training."""
    with open(os.devnull, 'w') as silence, contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        os.dup2(silence.fileno(), 1)
        os.dup2(silence.fileno(), 2)
        if prepare is not None:
            prepare()
        options = dict(dict(epochs=EPOCHS, resume=True, val=False, model=dict(padding=PADDING),
                            checkpoint=dict(max_keep_ckpts=2)), **options)
        try:
            build_runner(work_dir, **dict(options, hooks=[*options.get('hooks', []), Reports(pipe)])).train()
        except Exception as error:
            pipe.send(('error', str(error)))
            raise


class Training:
    """A training in a process of its own, and what it has reported.

    Args:
        work_dir: As in a config.
        prepare: Called in the process before the training.
        options: Of :func:`build_runner`.
    """

    def __init__(self, work_dir: Path, prepare: Callable[[], None] | None = None, **options: object) -> None:
        self.pipe, far_end = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=train, args=(str(work_dir), far_end, prepare, options))
        self.process.start()
        far_end.close()
        self.said: dict[str, list] = dict(start=[], save=[], saved=[], end=[], error=[])

    def listen(self, until: str = 'end', count: int = 1) -> None:
        """Collects reports until one has come ``count`` times or the process is gone."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            while len(self.said[until]) < count:
                kind, value = self.pipe.recv()
                self.said[kind].append(value)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.listen()

    def finish(self) -> str | None:
        """Hash of the final weights, or None if the training did not get there."""
        self.listen()
        self.process.join()
        return self.said['end'][0] if self.said['end'] else None


def resume(work_dir: Path, reached: int, reference: str, in_save: bool = False, wrong: str = '',
           **options: object) -> Outcome:
    """Resumes, and counts the epochs of ``reached`` that must be trained again."""
    training = Training(work_dir, **options)
    final = training.finish()
    if final is None:
        return Outcome(None, False, in_save, wrong or str(training.said['error']))
    return Outcome(max(0, reached - training.said['start'][0]), final == reference, in_save, wrong)


def after(work_dir: Path, saved: int, **options: object) -> None:
    """Trains until some epochs are saved, then kills the training."""
    training = Training(work_dir, **options)
    training.listen('saved', saved)
    training.kill()


def kill_in_save(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """SIGKILL at a random moment of a save; a few come when it has just ended."""
    training = Training(work_dir)
    training.listen('save', draw.randint(1, EPOCHS))
    time.sleep(draw.uniform(0, duration))
    training.kill()
    return resume(work_dir, len(training.said['save']), reference,
                  len(training.said['saved']) < len(training.said['save']))


def kill_anywhen(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """SIGKILL at a random moment between the first iteration and the last epoch."""
    training = Training(work_dir)
    training.listen('start')
    time.sleep(draw.uniform(0, EPOCHS * 4 * duration))
    training.kill()
    saves, saved = len(training.said['save']), len(training.said['saved'])
    return resume(work_dir, max(saves, saved), reference, saved < saves)


def damage_newest(harm: Callable[[Path, random.Random], None]) -> Callable:
    """A trial that damages the newest of three checkpoints."""

    def trial(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
        after(work_dir, 3)
        newest = Path((work_dir / 'last_checkpoint').read_text())
        reached = int(newest.stem.split('_')[1])
        harm(newest, draw)
        return resume(work_dir, reached, reference)

    return trial


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(1, path.stat().st_size))


def empty(path: Path, draw: random.Random) -> None:
    os.truncate(path, 0)


def flip_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def point_to_nothing(path: Path, draw: random.Random) -> None:
    (path.parent / 'last_checkpoint').write_text(str(path.parent / 'epoch_99.pth'))


def other_shape(path: Path, draw: random.Random) -> None:
    other = path.parent / 'other'
    Training(other, model=dict(width=16)).finish()
    shutil.copy(other / f'epoch_{EPOCHS}.pth', path)


def folder_instead(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def folder_as_pointer(path: Path, draw: random.Random) -> None:
    folder_instead(path.parent / 'last_checkpoint', draw)


def resume_a_copy(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """A copy of a work directory goes on; the original must stay as it is, its best checkpoint included."""
    options = dict(val=True, checkpoint=dict(max_keep_ckpts=2, save_best='accuracy'))
    after(work_dir / 'original', 3, **options)
    before = contents(work_dir / 'original')
    shutil.copytree(work_dir / 'original', work_dir / 'copy')
    outcome = resume(work_dir / 'copy', 3, reference, **options)
    return outcome._replace(wrong='' if contents(work_dir / 'original') == before else 'the original has changed')


def name_other_files(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """The newest checkpoint names files of the user as its best one and as outdated ones."""
    options = dict(val=True, checkpoint=dict(max_keep_ckpts=2, save_best='accuracy'))
    after(work_dir / 'work', 2, **options)
    newest = Path((work_dir / 'work' / 'last_checkpoint').read_text())
    victims = [work_dir / 'thesis.txt', work_dir / 'epoch_0.pth', work_dir / 'work' / 'epoch_notes.pth',
               work_dir / 'work' / 'thesis.pth.saving']
    for victim in victims:
        victim.write_text('mine')
    checkpoint = torch.load(newest, weights_only=False)
    checkpoint['message_hub']['runtime_info'].update(
        best_ckpt=str(victims[draw.randrange(3)]), best_score=-1.,
        keep_ckpt_ids=['../../thesis.txt', 'notes', f'../../{victims[1].name}', 1, 2])
    torch.save(checkpoint, newest)
    outcome = resume(work_dir / 'work', 2, reference, **options)
    gone = [victim.name for victim in victims if not victim.exists()]
    return outcome._replace(wrong=f'deleted {gone}' if gone else '')


def new_training_in_an_old_folder(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """An older training has gone further; what a signal has stopped is the new one."""
    after(work_dir, 3, seed=1)
    old = contents(work_dir)
    iteration = draw.choice([3, 4])
    Training(work_dir, resume=False, hooks=[SignalAt(iteration)]).finish()
    outcome = resume(work_dir, 1, reference, epochs=2)
    expected = Training(work_dir / 'expected', epochs=2).finish()
    resumed = hash_of(read_checkpoint(str(work_dir / 'epoch_2.pth'))['state_dict'])
    kept = contents(work_dir).get('epoch_3.pth') == old['epoch_3.pth']
    return outcome._replace(equal=resumed == expected, wrong='' if kept else "the older training's epoch_3 is gone")


def start_a_second(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """A second training in the folder is refused, and the first does not notice."""
    first = Training(work_dir, hooks=[WaitFor(work_dir / 'second_is_over')])
    first.listen('saved', 1)
    second = Training(work_dir, resume=draw.random() < 0.5)
    refused = second.finish() is None and f'another training uses {str(work_dir)!r}: process {first.process.pid} on' \
        in str(second.said['error'])
    (work_dir / 'second_is_over').touch()
    final = first.finish()
    return Outcome(0, final == reference, wrong='' if refused else f'the second was not refused: {second.said}')


def interrupt_iterations(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """A loop over iterations is told to leave in the middle, with and without workers."""
    options = dict(iterations=14, length=20, batch_size=3, workers=draw.choice([0, 2]),
                   sampler=draw.choice(['DefaultSampler', 'InfiniteSampler']))
    expected = Training(work_dir / 'whole', **options).finish()
    Training(work_dir / 'left', hooks=[SignalAt(draw.randrange(1, 12))], **options).finish()
    return resume(work_dir / 'left', 0, expected, **options)


def interrupt_accumulation(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """Killed at an epoch's end, in the middle of a step of four iterations over ten."""
    options = dict(epochs=3, length=20, batch_size=2, accumulate=4)
    expected = Training(work_dir / 'whole', **options).finish()
    after(work_dir / 'killed', 1, **options)
    return resume(work_dir / 'killed', 1, expected, **options)


def terminate_in_the_last_validation(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """The training is complete, its last metrics are not: the validation is repeated."""
    signalled = Training(work_dir, val=True, hooks=[SignalAt(validation=EPOCHS, number=draw.choice(
        [signal.SIGTERM, signal.SIGKILL]))])
    signalled.finish()
    status = signalled.process.exitcode
    outcome = resume(work_dir, EPOCHS, reference, val=True)
    logs = [json.loads(line) for path in work_dir.glob('*/vis_data/scalars.json')
            for line in path.read_text().splitlines()]
    metrics = [line['accuracy'] for line in logs if line.get('step') == EPOCHS and 'accuracy' in line]
    return outcome._replace(wrong='' if status in (75, -signal.SIGKILL) and len(metrics) == 1 else
                            f'status {status}, {len(metrics)} last validations')


def folders_that_cannot_be_flushed(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """A file system whose folders cannot be synced, as some of networks and FUSE."""

    def prepare() -> None:
        whole = os.fsync

        def fsync(descriptor: int) -> None:
            if os.path.isdir(f'/proc/self/fd/{descriptor}'):
                raise OSError(errno.EINVAL, 'Invalid argument')
            whole(descriptor)

        os.fsync = fsync

    after(work_dir, 2, prepare=prepare)
    return resume(work_dir, 2, reference, prepare=prepare)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder but its logs."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in ('.pth', '.saving')}


def fill_disk(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """A tmpfs that gets full during a save; without the right to mount, a limit on the size of files."""
    work_dir.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', work_dir],
                             capture_output=True).returncode == 0
    try:
        if mounted:
            # Room for two checkpoints of 8 MB and some of the third.
            (work_dir / 'ballast').write_bytes(bytes(40 * 2**20 - draw.randint(17, 24) * 2**20))
            failed = Training(work_dir)
        else:
            after(work_dir, 2)
            size = draw.randint(2**20, 7 * 2**20)
            failed = Training(work_dir, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
        if failed.finish() is not None:
            return Outcome(None, False)
        reached = len(failed.said['save']) if mounted else max(failed.said['save'])
        if mounted:
            (work_dir / 'ballast').unlink()
        return resume(work_dir, reached, reference)
    finally:
        if mounted:
            subprocess.run(['umount', '-l', work_dir], check=True)


def kill_one_of_two(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """Two processes under torchrun; one gets a SIGKILL, the run must end, and a new one must go on."""
    return of_two(work_dir, draw, lambda shell, torchrun, ranks: os.kill(draw.choice(ranks), signal.SIGKILL), (1, ))


def kill_torchrun(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """Its processes save and end within a minute."""

    def kill(shell: int, torchrun: int, ranks: list[int]) -> None:
        os.kill(torchrun, signal.SIGKILL)
        end = time.monotonic() + 60
        while any(Path(f'/proc/{rank}').exists() for rank in ranks) and time.monotonic() < end:
            time.sleep(0.1)
        assert time.monotonic() < end, 'the processes of a torchrun that was killed go on'

    return of_two(work_dir, draw, kill, (128 + signal.SIGKILL, ))


def tell_one_in_validation(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """One process alone is told to leave while both validate."""
    return of_two(work_dir, draw, lambda shell, torchrun, ranks: os.kill(draw.choice(ranks), signal.SIGUSR1), (75, ),
                  '--val-time', '2')


def interrupt_twice(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """Ctrl-C, and again during the slow save that follows; SIGINT goes to the whole group, as a terminal sends it."""

    def interrupt(shell: int, torchrun: int, ranks: list[int]) -> None:
        for _ in range(2):
            os.killpg(shell, signal.SIGINT)
            time.sleep(1.5)

    # Background jobs of a shell ignore SIGINT, and so would all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return of_two(work_dir, draw, interrupt, (75, ), '--save-time', '2')


def of_two(work_dir: Path, draw: random.Random, disturb: Callable[[int, int, list[int]], None],
           statuses: tuple[int, ...], *arguments: str) -> Outcome:
    """Disturbs a training of two processes under torchrun.sh after its first epoch, resumes it, and compares.

    Args:
        work_dir: For both trainings.
        draw: Gives the moment.
        disturb: Called with the ids of torchrun.sh, of torchrun and of its processes.
        statuses: With which torchrun.sh may exit.
        arguments: Of the disturbed training.
    """
    final = _run_two(work_dir / 'whole')
    process = _start_two(work_dir / 'disturbed', '--step-time', '0.1', *arguments)
    while not (work_dir / 'disturbed' / 'last_checkpoint').exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(draw.uniform(0.1, 0.5))
    torchrun, = _children(process.pid)
    disturb(process.pid, torchrun, _children(torchrun))
    output, _ = process.communicate(timeout=100)
    # What was saved, and the epoch that was under way.
    reached = max(int(path.stem.split('_')[1]) for path in (work_dir / 'disturbed').glob('epoch_*.pth')) + 1
    report = work_dir / 'started_at'
    equal = _run_two(work_dir / 'disturbed', '--resume', '--report', str(report)) == final
    return Outcome(max(0, min(reached, 4) - int(report.read_text())), equal,
                   wrong='' if process.returncode in statuses else f'status {process.returncode}: {output[-2000:]}')


def _start_two(work_dir: Path, *arguments: str) -> subprocess.Popen:
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, PYTHONPATH=str(ROOT))
    environment.pop('PORT', None)
    command = [ROOT / 'tools/env/torchrun.sh', '2', SCRIPT, work_dir, '--launcher', 'pytorch', *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
                            start_new_session=True)


def _run_two(work_dir: Path, *arguments: str) -> str:
    """Hash of the final weights."""
    process = _start_two(work_dir, *arguments)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output[-4000:]
    return hash_of(read_checkpoint(str(work_dir / 'epoch_4.pth'))['state_dict'])


def _children(process: int) -> list[int]:
    listed = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process)], capture_output=True, text=True)
    return [int(child) for child in listed.stdout.split()]


FAULTS: tuple[tuple[str, Callable, int], ...] = (
    ('SIGKILL during a save', kill_in_save, 40),
    ('SIGKILL at any moment', kill_anywhen, 15),
    ('newest truncated', damage_newest(truncate), 4),
    ('newest empty', damage_newest(empty), 2),
    ('newest with a flipped bit', damage_newest(flip_bit), 6),
    ('newest of another shape', damage_newest(other_shape), 2),
    ('newest is a folder', damage_newest(folder_instead), 2),
    ('pointer to nothing', damage_newest(point_to_nothing), 2),
    ('pointer is a folder', damage_newest(folder_as_pointer), 2),
    ('disk full during a save', fill_disk, 4),
    ('folders cannot be flushed', folders_that_cannot_be_flushed, 2),
    ('a copy is resumed', resume_a_copy, 2),
    ('checkpoint names other files', name_other_files, 3),
    ('new training in an old folder', new_training_in_an_old_folder, 2),
    ('second training in a folder', start_a_second, 2),
    ('signal between iterations', interrupt_iterations, 6),
    ('killed in an accumulation', interrupt_accumulation, 2),
    ('left in the last validation', terminate_in_the_last_validation, 4),
    ('one of two processes killed', kill_one_of_two, 2),
    ('torchrun killed', kill_torchrun, 2),
    ('one told to leave in validation', tell_one_in_validation, 2),
    ('Ctrl-C twice in a slow save', interrupt_twice, 1),
)
#: Faults whose trials lose no epoch.
LOSE_NOTHING = ('pointer to nothing', 'pointer is a folder', 'a copy is resumed', 'second training in a folder',
                'signal between iterations', 'left in the last validation')


def run_faults(share: float = 1., seed: int = 0, names: list[str] | None = None
               ) -> Iterator[tuple[str, list[Outcome]]]:
    """Runs the trials.

    Args:
        share: Fraction of the trials of each fault to run, at least one.
            Defaults to 1.
        seed: Of the moments and positions. Defaults to 0.
        names: Faults to run, None for all.

    Yields:
        A fault, and the outcomes of its trials.
    """
    torch.set_num_threads(1)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        undisturbed = Training(Path(root) / 'undisturbed')
        durations = []
        for i in range(1, EPOCHS + 1):
            undisturbed.listen('save', i)
            began = time.monotonic()
            undisturbed.listen('saved', i)
            durations.append(time.monotonic() - began)
        duration = min(durations)
        reference = undisturbed.finish()
        for name, trial, count in FAULTS:
            if names is not None and name not in names:
                continue
            outcomes = []
            for i in range(max(1, round(count * share))):
                work_dir = Path(root) / f'trial_{i}'
                outcomes.append(trial(work_dir, draw, reference, duration))
                shutil.rmtree(work_dir)
            yield name, outcomes


def row(name: str, outcomes: list[Outcome]) -> str:
    """A line of the table."""
    resumed = [outcome for outcome in outcomes if outcome.lost is not None]
    lost = max((outcome.lost for outcome in resumed), default=0)
    equal = sum(outcome.equal for outcome in outcomes)
    in_save = sum(outcome.in_save for outcome in outcomes)
    right = sum(not outcome.wrong for outcome in outcomes)
    return f'{name:31} {len(outcomes):6} {in_save or "":8} {len(resumed):8} {lost:12} {equal:14} {right:10}'


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(line + '\n')
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--share', type=float, default=1., help='fraction of the trials to run (default: 1)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments and positions (default: 0)')
    parser.add_argument('--only', nargs='+', metavar='FAULT', help='names of faults to run (default: all)')
    parser.add_argument('--out', metavar='FILE.json', help='write the outcomes to this file')
    args = parser.parse_args()
    say(f'{"fault":31} {"trials":>6} {"in save":>8} {"resumed":>8} {"epochs lost":>12} {"weights equal":>14} '
        f'{"rest right":>10}')
    everything: dict[str, list[Outcome]] = {}
    for name, outcomes in run_faults(args.share, args.seed, args.only):
        everything[name] = outcomes
        say(row(name, outcomes))
    trials = [outcome for outcomes in everything.values() for outcome in outcomes]
    say(row('all', trials))
    if args.out:
        Path(args.out).write_text(json.dumps({name: [o._asdict() for o in os] for name, os in everything.items()}))
    for name, outcomes in everything.items():
        for outcome in outcomes:
            if outcome.wrong:
                say(f'{name}: {outcome.wrong}')
    return int(any(outcome.lost is None or outcome.lost > 1 or not outcome.equal or outcome.wrong
                   for outcome in trials))


if __name__ == '__main__':
    sys.exit(main())
