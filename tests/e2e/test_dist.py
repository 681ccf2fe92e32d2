# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Two processes over gloo, through tools/dist_train.sh and dist_test.sh."""
import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import write_config

pytestmark = pytest.mark.two_processes


@pytest.fixture(scope='module')
def image_folders(tmp_path_factory):
    """A classification data set of two colours, 16 + 8 images."""
    root = tmp_path_factory.mktemp('colours')
    for split, count in (('train', 8), ('val', 4)):
        for name, colour in (('blue', (20, 20, 220)), ('red', (220, 20, 20))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new('RGB', (48 + i, 48), tuple(c + i for c in colour)).save(folder / f'{i}.png')
    return root


def environment(**variables: str) -> dict[str, str]:
    env = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1')
    env.pop('PORT', None)
    return {**env, **variables}


def run_tool(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, env=environment(),
                          timeout=300)


def classifier_options(root) -> list[str]:
    """Makes the ImageNet pretraining of T0 a matter of seconds."""
    options = ['train_cfg.max_epochs=1', 'model.head.num_classes=2', 'data_preprocessor.num_classes=2',
               'default_hooks.logger.interval=1', 'randomness.seed=0', 'val_evaluator.topk=1', 'test_evaluator.topk=1']
    for split in ('train', 'val', 'test'):
        loader = f'{split}_dataloader'
        options += [f'{loader}.batch_size=4', f'{loader}.num_workers=0', f'{loader}.persistent_workers=False',
                    f'{loader}.dataset.data_root={root}', f'{loader}.dataset.metainfo.classes=blue,red']
    return options


def test_pretraining_trains_and_tests_in_two_processes(image_folders, tmp_path):
    pytest.importorskip('mmpretrain')
    config = 'configs/pretrain/partialnet_t0_in1k.py'
    options = classifier_options(image_folders)
    done = run_tool('tools/dist_train.sh', config, 2, '--work-dir', tmp_path, '--cfg-options', *options,
                    'images_per_gpu=2', 'auto_scale_lr.base_batch_size=8')
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    log = re.sub(' +', ' ', done.stdout + done.stderr)
    assert 'batch: 2 images per GPU x 2 GPU(s) x 2 accumulated step(s) = 8' in log.split('Epoch(train)')[0]
    # 16 images in batches of 2 on 2 processes: 4 iterations
    assert 'Epoch(train) [1][4/4]' in log
    assert (tmp_path / 'epoch_1.pth').is_file()
    state = torch.load(tmp_path / 'epoch_1.pth', map_location='cpu', weights_only=False)['state_dict']
    assert all(torch.isfinite(value).all() for value in state.values())

    tested = run_tool('tools/dist_test.sh', config, tmp_path / 'epoch_1.pth', 2, '--work-dir', tmp_path / 'test',
                      '--cfg-options', *options)
    assert tested.returncode == 0, tested.stdout[-3000:] + tested.stderr[-3000:]
    assert re.search(r'accuracy/top1\s+\d', tested.stdout)


def test_wrong_usage_keeps_its_status():
    done = run_tool('tools/dist_train.sh', 'configs/pretrain/partialnet_t0_in1k.py', 2, '--bogus')
    assert done.returncode == 2 and 'unrecognized arguments: --bogus' in done.stderr


def test_two_machines(image_folders, tmp_path, tiny_arch):
    """The commands of docs/coco.md for several machines; here each machine is a group of one process."""
    config = write_config('classifier', tmp_path / 'config.py', tiny_arch)
    options = classifier_options(image_folders)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    machines = [subprocess.Popen(
        ['tools/dist_train.sh', str(config), '1', '--work-dir', str(tmp_path / f'machine{rank}'), '--cfg-options',
         *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1', PORT=port)) for rank in (0, 1)]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    # 16 images in batches of 4 on two machines: 2 iterations. The first machine logs and saves.
    logs = [re.sub(' +', ' ', output) for output in outputs]
    assert 'Epoch(train) [1][2/2]' in logs[0] and 'Epoch(train)' not in logs[1]
    assert (tmp_path / 'machine0' / 'epoch_1.pth').is_file()
    assert not (tmp_path / 'machine1' / 'epoch_1.pth').exists()
