# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Two processes over gloo, through tools/dist_train.sh and dist_test.sh."""
import os
import re
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed.run
from mmengine.config import Config
from PIL import Image

from partialnet_mm.engine.runners.command_line import CHECKED, check_data
from partialnet_mm.engine.runners.config_file import ConfigError
from partialnet_mm.engine.runners.missing import require_gpus
from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import write_config
from tests.helpers.tool_scripts import run_main


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


@pytest.mark.slow
@pytest.mark.two_processes
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


MISSING = "train.py: checkpoint 'work_dirs/partialnet_s_in1k/epoch_300.pth' does not exist; "
CONFIG = 'configs/mask_rcnn/partialnet_s_1x.py'


def test_a_missing_checkpoint_is_one_sentence_before_any_process_starts():
    """The data is not looked at: it is missing here, too."""
    done = run_tool('tools/dist_train.sh', CONFIG, 8)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith(MISSING) and len(done.stderr.splitlines()) == 1
    assert 'model.backbone.init_cfg.checkpoint=FILE' in done.stderr and 'configs/pretrain' in done.stderr


@pytest.fixture
def launch(monkeypatch, capsys):
    """Runs tools/env/launch.py in this process; returns its status, stderr, and how it called torchrun."""
    def run(processes, script, *arguments):
        started = []
        monkeypatch.setattr(torch.distributed.run, 'main', started.append)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
        for name in ('PORT', 'RESTARTS', 'NNODES', 'NODE_RANK', 'MASTER_ADDR'):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(CHECKED, '')
        status = run_main(monkeypatch, 'tools/env/launch.py', processes, script, *arguments)
        return status, capsys.readouterr().err, started

    return run


@pytest.mark.parametrize('words, message', [
    ('3 tools/train.py {config}', '3 processes need as many GPUs, and torch sees 2 on this machine'),
    ('2 tools/train.py nowhere.py', "config 'nowhere.py' does not exist"),
    ('2 tools/train.py {config} --bogus', 'unrecognized arguments: --bogus'),
    ('2 tools/train.py {config} --cfg-options foo', "'foo' is not KEY=VALUE"),
    ('2 tools/train.py {config} --resume nowhere.pth', "--resume: checkpoint 'nowhere.pth' does not exist"),
    ('2 tools/train.py {config} --cfg-options load_from=nowhere.pth', "checkpoint 'nowhere.pth' does not exist"),
    ('2 tools/train.py configs/faster_rcnn/faster_rcnn_partialnet_t0_custom.py --cfg-options checkpoint=nowhere.pth',
     'by --cfg-options checkpoint=FILE, or leave it out to start from random weights'),
    ('2 tools/train.py {config} --cfg-options model.neck.init_cfg.type=Pretrained '
     'model.neck.init_cfg.checkpoint=nowhere.pth', 'by --cfg-options model.neck.init_cfg.checkpoint=FILE'),
    ('2 tools/train.py {config} --cfg-options train_dataloader.dataset.data_root={tmp}/none',
     "none/train' of train_dataloader"),
    ('2 tools/train.py {config} --cfg-options val_dataloader.dataset.data_root={tmp}/none',
     "none/val' of val_dataloader. If it is elsewhere: .*without validation: val_cfg=None"),
    ('2 tools/test.py {config} nowhere.pth', "checkpoint 'nowhere.pth' does not exist"),
])
def test_what_can_be_known_early_is_one_sentence(words, message, launch, image_folders, tmp_path):
    config = write_classifier(tmp_path, image_folders)
    status, said, started = launch(*words.format(config=config, tmp=tmp_path).split())
    lines = [line for line in said.splitlines() if 'warning' not in line]
    assert (status, started) == (2, []) and len(lines) == 1 and len(said.splitlines()) <= 5, said
    assert re.search(message, said), said


def test_nccl_needs_gpus(launch, image_folders, tmp_path, monkeypatch):
    options = ['--cfg-options', 'env_cfg.dist_cfg.backend=nccl']
    config = write_classifier(tmp_path, image_folders)
    assert launch(2, 'tools/train.py', config, *options)[0] == 0
    monkeypatch.setattr('partialnet_mm.engine.runners.missing.torch.cuda.device_count', lambda: 0)
    with pytest.raises(ConfigError, match='backend=nccl needs GPUs, and torch sees none'):
        require_gpus(2, 'nccl')
    assert require_gpus(2, None) == 'torch sees no GPU: 2 processes share the CPU'


def test_a_good_command_line_starts_and_is_not_checked_again(launch, image_folders, tmp_path, monkeypatch):
    config = write_classifier(tmp_path, image_folders)
    status, said, (options, ) = launch(2, 'tools/train.py', config, '--launcher', 'pytorch')
    assert (status, said) == (0, '')
    assert options[:3] == ['--nnodes=1', '--nproc_per_node=2', '--node_rank=0']
    assert options[-4:] == ['tools/train.py', str(config), '--launcher', 'pytorch'] and os.environ[CHECKED] == '1'
    cfg = Config.fromfile(config)
    cfg.train_dataloader.dataset.data_root = 'nowhere'
    check_data(None, cfg, ('train', ))  # in the processes
    monkeypatch.delenv(CHECKED)
    with pytest.raises(ConfigError, match='the data is missing'):
        check_data(None, cfg, ('train', ))


def write_classifier(folder, images):
    """A config of a classifier with its data, and without the need for a checkpoint."""
    path = folder / 'config.py'
    loaders = ''.join(f'{split}_dataloader = dict(dataset=dict(data_root={str(images)!r}, '
                      "metainfo=dict(classes=('blue', 'red'))))\n" for split in ('train', 'val', 'test'))
    path.write_text(f"_base_ = '{ROOT}/configs/pretrain/partialnet_t0_in1k.py'\n{loaders}"
                    'model = dict(head=dict(num_classes=2))\ndata_preprocessor = dict(num_classes=2)\n')
    return path


@pytest.mark.slow
@pytest.mark.two_processes
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
