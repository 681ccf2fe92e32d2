# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The tools refuse what could harm, check data before training, and pass the status of a training that leaves on."""
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import run_main

CONFIG = 'configs/pretrain/partialnet_t0_in1k.py'


def environment(**more):
    return dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', **more)


@pytest.fixture(scope='module')
def data_options(tmp_path_factory):
    """Options that make the pretraining of T0 one of 12 images of two colours."""
    pytest.importorskip('mmpretrain')
    root = tmp_path_factory.mktemp('colours')
    for split in ('train', 'val'):
        for name in ('blue', 'red'):
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                Image.new('RGB', (48, 48), name).save(root / split / name / f'{i}.png')
    options = ['model.head.num_classes=2', 'data_preprocessor.num_classes=2', 'val_evaluator.topk=1',
               'test_evaluator.topk=1', 'randomness.seed=0']
    for split in ('train', 'val', 'test'):
        loader = f'{split}_dataloader'
        options += [f'{loader}.batch_size=2', f'{loader}.num_workers=0', f'{loader}.persistent_workers=False',
                    f'{loader}.dataset.data_root={root}', f'{loader}.dataset.metainfo.classes=blue,red']
    return options


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


def save_zip(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize('tool, save', [
    ('test', save_zip), ('train', save_legacy), pytest.param('test', save_pickle, marks=pytest.mark.slow)])
def test_nothing_of_a_malicious_checkpoint_runs(tmp_path, data_options, tool, save, monkeypatch, capsys):
    trap = tmp_path / 'it_ran'
    save(dict(state_dict=dict(), meta=Malicious(trap)), tmp_path / 'bad.pth')
    common = ['--work-dir', tmp_path / 'work', '--cfg-options', *data_options]
    if tool == 'test':
        status = run_main(monkeypatch, 'tools/test.py', CONFIG, tmp_path / 'bad.pth', *common)
    else:
        status = run_main(monkeypatch, 'tools/train.py', CONFIG, *common, f'load_from={tmp_path / "bad.pth"}')
    said = capsys.readouterr().err
    assert status == 2 and 'bad.pth' in said and '--trust-checkpoint' in said, said[-2000:]
    assert not trap.exists()


def test_the_trap_is_real(tmp_path):
    save_zip(dict(meta=Malicious(tmp_path / 'it_ran')), tmp_path / 'bad.pth')
    torch.load(tmp_path / 'bad.pth', weights_only=False)
    assert (tmp_path / 'it_ran').is_dir()


def test_an_address_needs_the_flag(tmp_path, data_options, monkeypatch, capsys):
    assert run_main(monkeypatch, 'tools/test.py', CONFIG, 'https://localhost:1/x.pth', '--work-dir', tmp_path,
                    '--cfg-options', *data_options) == 2
    assert "'https://localhost:1/x.pth' is an address: download it" in capsys.readouterr().err


def test_broken_data_stops_before_training(tmp_path, data_options, monkeypatch, capsys):
    wrong = [option for option in data_options if not option.startswith('model.head')]
    work = tmp_path / 'work'
    assert run_main(monkeypatch, 'tools/train.py', CONFIG, '--work-dir', work, '--cfg-options', *wrong) == 2
    said = capsys.readouterr().err
    assert 'ERROR number of classes (1)' in said and '--skip-preflight' in said
    assert not work.exists()


@pytest.mark.two_processes
@pytest.mark.parametrize('number', [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_dist_train_passes_the_status_on_and_resumes(tmp_path, data_options, number, monkeypatch):
    command = ['tools/dist_train.sh', CONFIG, '1', '--work-dir', str(tmp_path), '--cfg-options', *data_options]
    process = subprocess.Popen([*command, 'train_cfg.max_epochs=300'], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env=environment())
    end = time.monotonic() + 180
    while not list(tmp_path.glob('epoch_*.pth')) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output[-3000:]
    assert 'leaving with status 75' in output
    saved = Path((tmp_path / 'last_checkpoint').read_text()).stem
    epochs = int(saved.split('_')[1])
    before = set(tmp_path.glob('*/*.log'))
    assert run_main(monkeypatch, 'tools/train.py', CONFIG, '--resume', '--work-dir', tmp_path, '--cfg-options',
                    *data_options, f'train_cfg.max_epochs={epochs + 1}') == 0
    log, = set(tmp_path.glob('*/*.log')) - before
    assert f'{saved}.pth' in log.read_text()
    assert (tmp_path / f'epoch_{epochs + 1}.pth').exists()


@pytest.mark.slow
@pytest.mark.two_processes
def test_dist_train_restarts_what_was_killed(tmp_path, data_options):
    process = subprocess.Popen(
        ['tools/dist_train.sh', CONFIG, '1', '--work-dir', str(tmp_path), '--cfg-options', *data_options,
         'train_cfg.max_epochs=8'], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(RESTARTS='1'))
    end = time.monotonic() + 60
    while not list(tmp_path.glob('epoch_*.pth')) and time.monotonic() < end:
        time.sleep(0.05)
    listed = subprocess.run(['ps', '-wweo', 'pid=,args='], capture_output=True, text=True).stdout.splitlines()
    worker, = (int(line.split()[0]) for line in listed
               if f'{sys.executable} -u' in line and 'tools/train.py' in line and str(tmp_path) in line)
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output[-3000:]
    assert 'the newest checkpoint that loads whole' in output
    assert (tmp_path / 'epoch_8.pth').exists()
