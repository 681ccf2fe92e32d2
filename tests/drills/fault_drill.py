# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Interrupts trainings in every way that a machine does, resumes them, and counts what was lost.

Each trial trains a small PartialNet in a process of its own, has it killed or
its files damaged, resumes it, and compares the final weights with those of a
training without interruption, bit by bit.
"""
import argparse
import contextlib
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
from tests.helpers.toy_training import build_runner, fingerprint, hash_of

EPOCHS = 5
#: Weights that only make checkpoints large: 8 MB, so that a save takes a while.
PADDING = 2_000_000
SCRIPT = ROOT / 'tests' / 'helpers' / 'toy_training.py'
PROCESSES = multiprocessing.get_context('fork')


class Outcome(NamedTuple):
    """Of one trial: epochs lost (None if the resumed training did not finish), weights equal, killed in a save."""

    lost: int | None
    equal: bool
    in_save: bool = False


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


def train(work_dir: str, pipe: object, width: int, file_size: int | None) -> None:
    """What a trial's process does."""
    with open(os.devnull, 'w') as silence, contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        os.dup2(silence.fileno(), 1)
        os.dup2(silence.fileno(), 2)
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        build_runner(work_dir, EPOCHS, resume=True, val=False, hooks=[Reports(pipe)],
                     model=dict(width=width, padding=PADDING), checkpoint=dict(max_keep_ckpts=2)).train()


class Training:
    """A training in a process of its own, and what it has reported."""

    def __init__(self, work_dir: Path, width: int = 8, file_size: int | None = None) -> None:
        self.pipe, far_end = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=train, args=(str(work_dir), far_end, width, file_size))
        self.process.start()
        far_end.close()
        self.said: dict[str, list] = dict(start=[], save=[], saved=[], end=[])

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


def resume(work_dir: Path, reached: int, reference: str, in_save: bool = False) -> Outcome:
    """Resumes, and counts the epochs of ``reached`` that must be trained again."""
    training = Training(work_dir)
    final = training.finish()
    if final is None:
        return Outcome(None, False, in_save)
    return Outcome(max(0, reached - training.said['start'][0]), final == reference, in_save)


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
        training = Training(work_dir)
        training.listen('saved', 3)
        training.kill()
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
    Training(other, width=16).finish()
    shutil.copy(other / f'epoch_{EPOCHS}.pth', path)


def fill_disk(work_dir: Path, draw: random.Random, reference: str, duration: float) -> Outcome:
    """A tmpfs that gets full during a save; without the right to mount, a limit on the size of files."""
    work_dir.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=40m', 'tmpfs', work_dir],
                             capture_output=True).returncode == 0
    try:
        if mounted:
            # Room for two checkpoints of 8 MB and a part of the third.
            (work_dir / 'ballast').write_bytes(bytes(40 * 2**20 - draw.randint(17, 24) * 2**20))
            failed = Training(work_dir)
        else:
            whole = Training(work_dir)
            whole.listen('saved', 2)
            whole.kill()
            failed = Training(work_dir, file_size=draw.randint(2**20, 7 * 2**20))
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
    final = hash_of(read_checkpoint(str(_two(work_dir / 'whole') / 'epoch_4.pth'))['state_dict'])
    command = _torchrun(work_dir / 'killed', '--step-time', '0.1')
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while not (work_dir / 'killed' / 'last_checkpoint').exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.5))
    listed = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True, text=True)
    os.kill(int(draw.choice(listed.stdout.split())), signal.SIGKILL)
    process.wait(timeout=60)
    # What was saved, and the epoch that was under way.
    reached = max(int(path.stem.split('_')[1]) for path in (work_dir / 'killed').glob('epoch_*.pth')) + 1
    report = work_dir / 'started_at'
    _two(work_dir / 'killed', '--resume', '--report', str(report))
    equal = hash_of(read_checkpoint(str(work_dir / 'killed' / 'epoch_4.pth'))['state_dict']) == final
    return Outcome(max(0, min(reached, 4) - int(report.read_text())), equal)


def _torchrun(work_dir: Path, *arguments: str) -> list[str]:
    return [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(SCRIPT),
            str(work_dir), '--launcher', 'pytorch', *arguments]


def _two(work_dir: Path, *arguments: str) -> Path:
    subprocess.run(_torchrun(work_dir, *arguments), check=True, capture_output=True, timeout=120,
                   env=dict(os.environ, OMP_NUM_THREADS='1'))
    return work_dir


FAULTS: tuple[tuple[str, Callable, int], ...] = (
    ('SIGKILL during a save', kill_in_save, 40),
    ('SIGKILL at any moment', kill_anywhen, 15),
    ('newest truncated', damage_newest(truncate), 4),
    ('newest empty', damage_newest(empty), 2),
    ('newest with a flipped bit', damage_newest(flip_bit), 6),
    ('newest of another shape', damage_newest(other_shape), 2),
    ('pointer to nothing', damage_newest(point_to_nothing), 2),
    ('disk full during a save', fill_disk, 4),
    ('one of two processes killed', kill_one_of_two, 2),
)


def run_faults(share: float = 1., seed: int = 0, names: list[str] | None = None
               ) -> Iterator[tuple[str, list[Outcome]]]:
    """Runs the trials.

    Args:
        share (float): Part of the trials of each fault to run, at least one.
            Defaults to 1.
        seed (int): Of the moments and places. Defaults to 0.
        names (list[str], optional): Faults to run, None for all.

    Yields:
        tuple[str, list[Outcome]]: A fault, and what came of its trials.
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
    return f'{name:28} {len(outcomes):6} {in_save or "":8} {len(resumed):8} {lost:12} {equal:14}'


def say(line: str) -> None:
    """Shows a line at once."""
    sys.stdout.write(line + '\n')
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--share', type=float, default=1., help='part of the trials to run (default: 1)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments and places (default: 0)')
    parser.add_argument('--out', metavar='FILE.json', help='write the outcomes to this file')
    args = parser.parse_args()
    say(f'{"fault":28} {"trials":>6} {"in save":>8} {"resumed":>8} {"epochs lost":>12} {"weights equal":>14}')
    everything: dict[str, list[Outcome]] = {}
    for name, outcomes in run_faults(args.share, args.seed):
        everything[name] = outcomes
        say(row(name, outcomes))
    trials = [outcome for outcomes in everything.values() for outcome in outcomes]
    say(row('all', trials))
    if args.out:
        Path(args.out).write_text(json.dumps({name: [o._asdict() for o in os] for name, os in everything.items()}))
    return int(any(outcome.lost is None or outcome.lost > 1 or not outcome.equal for outcome in trials))


if __name__ == '__main__':
    sys.exit(main())
