# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The command lines: wrong usage, and training and testing on a few drawn images."""
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from partialnet_mm.datasets import write_shapes_dataset
from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import run_main

CONFIG = 'configs/mask_rcnn/partialnet_t0_shapes.py'


def run(*command, **env):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, timeout=300,
                          env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', **env})


@pytest.mark.parametrize('command, usage', [
    ('tools/dist_train.sh', 'usage: tools/dist_train.sh CONFIG GPUS'),
    (f'tools/dist_train.sh {CONFIG}', 'usage: tools/dist_train.sh CONFIG GPUS'),
    (f'tools/dist_train.sh {CONFIG} none', 'usage: tools/dist_train.sh CONFIG GPUS'),
    (f'tools/dist_train.sh {CONFIG} 0', 'usage: tools/dist_train.sh CONFIG GPUS'),
    ('tools/dist_train.sh no.py 2', "config 'no.py' does not exist"),
    (f'tools/dist_test.sh {CONFIG} 2', 'usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS'),
    ('tools/env/torchrun.sh two tools/train.py', 'PROCESSES SCRIPT'),
    ('tools/slurm_train.sh partition', 'tools/slurm_train.sh PARTITION JOB_NAME CONFIG'),
    ('tools/slurm_test.sh partition job', 'tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT'),
    ('tools/env/setup_env.sh conda', 'usage: tools/env/setup_env.sh [onedl|openmmlab]'),
    ('tools/misc/demo.sh one two', 'tools/misc/demo.sh [WORK_DIR]'),
    ('python tools/train.py', 'required: config (train.py --help shows the usage)'),
    ('python tools/train.py no.py', "config 'no.py' does not exist"),
    *(('python ' + tool + ' --cfg-options lr', "--cfg-options: 'lr' is not KEY=VALUE") for tool in (
        f'tools/train.py {CONFIG}', f'tools/test.py {CONFIG} README.md')),
    *(pytest.param(f'python tools/train.py {CONFIG} {option}', text, marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason='there is a GPU')) for option, text in (
            ('--amp', '--amp needs a GPU'), ('--launcher slurm', '--launcher slurm needs GPUs'))),
    (f'python tools/test.py {CONFIG} no.pth', "checkpoint 'no.pth' does not exist"),
    (f'python tools/test.py {CONFIG} README.md --out table.txt', "--out must end in .pkl or .pickle, got 'table.txt'"),
    ('python tools/misc/montage.py tests montage.jpg', "no .jpg or .png in 'tests'"),
])
def test_wrong_usage_says_what_is_right_and_exits_2(command, usage, monkeypatch, capsys):
    words = command.split()
    if words[0] == 'python':
        status, said = run_main(monkeypatch, *words[1:]), capsys.readouterr().err
    else:
        done = run(*words)
        status, said = done.returncode, done.stderr
    assert status == 2 and usage in said, said


@pytest.mark.parametrize('settings, message', [
    (dict(NNODES='2'), 'NNODES=2 needs PORT, the same on every machine'),
    (dict(NNODES='2', PORT='29555'), 'NNODES=2 needs NODE_RANK'),
    (dict(NNODES='2', PORT='29555', NODE_RANK='1'), 'NNODES=2 needs MASTER_ADDR'),
    (dict(NNODES='two'), 'NNODES=two is wrong'),
    (dict(NNODES='2', NODE_RANK='2'), 'NODE_RANK=2 is wrong: a number from 0 to 1'),
    (dict(NODE_RANK='-1'), 'NODE_RANK=-1 is wrong'),
    (dict(PORT='0'), 'PORT=0 is wrong: a port from 1 to 65535 is needed'),
    (dict(PORT='65536'), 'PORT=65536 is wrong'),
    (dict(PORT='used'), 'cannot be used on this machine (Address already in use'),
    (dict(PORT='used', RESTARTS='2'), 'cannot be used on this machine'),
    (dict(RESTARTS='abc'), 'RESTARTS=abc is wrong: a number from 0 up is needed'),
    (dict(MASTER_ADDR='no.such.machine.invalid'), 'MASTER_ADDR=no.such.machine.invalid is wrong'),
])
def test_wrong_settings_of_a_job_are_one_sentence_before_anything_starts(settings, message):
    with socket.create_server(('', 0)) as taken:
        settings = {name: str(taken.getsockname()[1]) if value == 'used' else value for name, value in settings.items()}
        done = run('tools/dist_train.sh', CONFIG, 2, **settings)
    assert done.returncode == 2
    assert done.stderr.startswith('torchrun.sh: ') and len(done.stderr.splitlines()) == 1 and message in done.stderr


@pytest.mark.parametrize('settings', [dict(GPUS='many'), dict(GPUS_PER_NODE='0'), dict(CPUS_PER_TASK='-1')])
def test_wrong_settings_of_a_slurm_job(settings):
    done = run('tools/slurm_train.sh', 'gpu', 'job', CONFIG, **settings)
    assert done.returncode == 2 and 'is wrong: a number from 1 up is needed' in done.stderr


@pytest.mark.parametrize('code, status, restarts, written', [
    ('', 0, 0, '75'), ('sys.exit(2)', 2, 0, '2'), ('sys.exit(75)', 75, 1, '75'), ('sys.exit(1)', 1, 0, '75'),
    ('sys.exit("text")', 1, 1, ''), ('1 / 0', 1, 1, ''),
])
def test_the_status_of_a_process_goes_to_a_file(tmp_path, code, status, restarts, written):
    """torchrun loses it. What was written before a restart does not count."""
    (tmp_path / 'beside.py').touch()
    (tmp_path / 'script.py').write_text(f'import sys, beside\nassert sys.argv[1:] == ["--a", "b"]\n{code}\n')
    (tmp_path / 'status').write_text('75')
    done = run(sys.executable, 'tools/env/report_status.py', tmp_path / 'script.py', '--a', 'b',
               PARTIALNET_STATUS_FILE=str(tmp_path / 'status'), TORCHELASTIC_RESTART_COUNT=str(restarts))
    assert done.returncode == status, done.stderr
    assert (tmp_path / 'status').read_text() == written


@pytest.mark.slow
def test_a_conv_cfg_that_replaces_nothing_is_an_error(tmp_path):
    done = run(sys.executable, 'tools/train.py', CONFIG, '--skip-preflight', '--work-dir', tmp_path, '--cfg-options',
               'model.roi_head.bbox_head.conv_cfg.type=PATConv')
    assert done.returncode == 2
    assert ("model.roi_head.bbox_head.conv_cfg is of type 'PATConv' and has replaced no layer") in done.stderr


SRUN = ['-p', 'gpu', '--job-name=job', '--gres=gpu:4', '--ntasks=16', '--ntasks-per-node=4', '--cpus-per-task=5',
        '--kill-on-bad-exit=1', '--exclusive', '-t', '60']


@pytest.mark.parametrize('script, arguments, check', [
    ('slurm_train.sh', ['gpu', 'job', CONFIG, '--amp', '--skip-preflight', '--cfg-options', 'images_per_gpu=1'], ''),
    ('slurm_test.sh', ['gpu', 'job', CONFIG, 'x.pth', '--out', 'y.pkl'], '0'),
])
def test_slurm_scripts_ask_for_what_they_should(tmp_path, script, arguments, check):
    """A stand-in for srun notes down how it was called. Checks on the login node need no GPU."""
    done = run_slurm(tmp_path, script, *arguments, CHECK=check)
    assert done.returncode == 0, done.stderr
    checked, *words = done.stdout.splitlines()
    assert checked == f'checked={"" if check else 1}'
    assert words[:len(SRUN)] == SRUN
    python, unbuffered, tool, *rest = words[len(SRUN):]
    assert (python, unbuffered) == (sys.executable, '-u')
    assert (ROOT / tool).samefile(ROOT / 'tools' / ('train.py' if 'train' in script else 'test.py'))
    assert rest == [*arguments[2:], '--launcher', 'slurm']


def run_slurm(folder, script, *arguments, **variables):
    srun = folder / 'srun'
    srun.write_text('#!/bin/sh\necho "checked=$PARTIALNET_CHECKED"\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    return run(f'tools/{script}', *arguments, PATH=f'{folder}:{os.environ["PATH"]}', GPUS='16', GPUS_PER_NODE='4',
               SRUN_ARGS='--exclusive -t 60', **variables)


def test_slurm_starts_nothing_for_a_missing_checkpoint(tmp_path):
    done = run_slurm(tmp_path, 'slurm_train.sh', 'gpu', 'job', 'configs/mask_rcnn/partialnet_s_1x.py')
    assert done.returncode == 2 and done.stdout == ''
    first, last = done.stderr.splitlines()
    assert first.startswith("train.py: checkpoint 'work_dirs/partialnet_s_in1k/epoch_300.pth' does not exist; ")
    assert last.startswith('srun.sh: nothing was submitted. CHECK=0 leaves the check to the job')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Mask R-CNN after an epoch of two iterations on eight drawn images, with all options of both tools."""
    pytest.importorskip('mmdet')
    root = tmp_path_factory.mktemp('tools')
    write_shapes_dataset(root / 'shapes', dict(train=8, val=3), size=64)
    data = root / 'shapes'
    options = [f'{loader}.dataset.data_root={data}' for loader in ('train_dataloader', 'val_dataloader',
                                                                   'test_dataloader')]
    options += [f'{loader}.{option}' for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader')
                for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=4')]
    options += [f'{split}_evaluator.ann_file={data}/annotations/instances_val.json' for split in ('val', 'test')]
    options += ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=1',
                'train_dataloader.dataset.filter_cfg.min_size=0', 'default_hooks.visualization.score_thr=0.0']
    work = root / 'work'
    done = run(sys.executable, 'tools/train.py', CONFIG, '--work-dir', work, '--auto-scale-lr',
               '--cfg-options', *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return work, options, done.stdout + done.stderr


def test_train_trains_and_measures(trained):
    work, _, log = trained
    assert (work / 'epoch_1.pth').is_file()
    assert 'Epoch(train) [1][2/2]' in re.sub(' +', ' ', log)
    assert 'coco/segm_mAP' in log
    # 4 images of the base batch of 16: a quarter of the rate
    assert 'Scaling the original LR by 0.25' in log


def test_resume_goes_on_from_the_newest(trained, tmp_path, monkeypatch):
    work, options, _ = trained
    shutil.copytree(work, tmp_path / 'work')  # the second epoch's checkpoint takes the place of the first's
    before = set((tmp_path / 'work').glob('*/*.log'))
    assert run_main(monkeypatch, 'tools/train.py', CONFIG, '--work-dir', tmp_path / 'work', '--resume', '--cfg-options',
                    *options, 'train_cfg.max_epochs=2') == 0
    written, = set((tmp_path / 'work').glob('*/*.log')) - before
    log = re.sub(' +', ' ', written.read_text())
    assert 'Epoch(train) [2][2/2]' in log and 'Epoch(train) [1][1/2]' not in log


def test_test_measures_draws_and_dumps(trained, tmp_path, monkeypatch, capsys):
    work, options, _ = trained
    # resume=True is what the config in the work folder of a resumed training says
    assert run_main(monkeypatch, 'tools/test.py', CONFIG, work / 'epoch_1.pth', '--work-dir', tmp_path, '--show-dir',
                    tmp_path / 'pictures', '--out', tmp_path / 'found.pkl', '--cfg-options', *options,
                    'resume=True') == 0
    assert re.search(r'coco/bbox_mAP +-?\d', capsys.readouterr().out)
    assert sorted(p.name for p in (tmp_path / 'pictures').iterdir()) == ['00001.jpg', '00002.jpg', '00003.jpg']
    found = pickle.loads((tmp_path / 'found.pkl').read_bytes())
    assert len(found) == 3 and {'bboxes', 'scores', 'labels', 'masks'} <= set(found[0]['pred_instances'])


def test_montage_joins_pictures(tmp_path, monkeypatch):
    import cv2
    import numpy as np
    for i in range(3):
        cv2.imwrite(str(tmp_path / f'{i}.png'), np.full((32, 64, 3), 40 * i, np.uint8))
    assert run_main(monkeypatch, 'tools/misc/montage.py', tmp_path, tmp_path / 'all.png', '--height', '32') == 0
    assert cv2.imread(str(tmp_path / 'all.png')).shape == (2 * 36 + 4, 2 * 68 + 4, 3)


SEGMENTATION = '''
_base_ = './my_segmentor.py'
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(arch='t0', init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256]),
    decode_head=dict(num_classes=2))
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]
dataset = dict(_delete_=True, type='BaseSegDataset', data_root=r'{root}',
               data_prefix=dict(img_path='images', seg_map_path='masks'), img_suffix='.png', seg_map_suffix='.png',
               metainfo=dict(classes=('left', 'right'), palette=[[255, 0, 0], [0, 255, 0]]), pipeline=pipeline)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=2), visualization=dict(interval=1))
'''


def test_a_segmentation_config_trains_measures_and_draws(tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmseg')
    import numpy as np
    from PIL import Image

    from tests.helpers.libraries import readme_snippets, shipped_config
    (tmp_path / 'images').mkdir()
    (tmp_path / 'masks').mkdir()
    for i in range(4):
        mask = np.zeros((64, 64), np.uint8)
        mask[:, 10 * i + 16:] = 1
        Image.fromarray(mask).save(tmp_path / 'masks' / f'{i}.png')
        Image.fromarray(np.stack((mask * 200, 200 - mask * 200, mask), axis=-1)).save(tmp_path / 'images' / f'{i}.png')
    base = shipped_config('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py')
    (tmp_path / base.name).write_text(f'_base_ = {str(base)!r}\n')
    (tmp_path / 'my_segmentor.py').write_text(readme_snippets()['my_segmentor.py'])
    config = tmp_path / 'tiny.py'
    config.write_text(SEGMENTATION.replace('{root}', str(tmp_path)))
    assert run_main(monkeypatch, 'tools/train.py', config, '--work-dir', tmp_path / 'work') == 0
    # A process has one visualizer of a name, which writes to the folder of the training.
    assert run_main(monkeypatch, 'tools/test.py', config, tmp_path / 'work' / 'iter_2.pth', '--work-dir',
                    tmp_path / 'test', '--show-dir', tmp_path / 'pictures', '--out', tmp_path / 'found.pkl',
                    '--cfg-options', 'visualizer.name=test') == 0
    assert re.search(r'mIoU +\d', capsys.readouterr().out)
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 4
    assert len(pickle.loads((tmp_path / 'found.pkl').read_bytes())) == 4


def test_a_checkpoint_of_another_network_is_refused(trained, tmp_path, monkeypatch, capsys):
    work, options, _ = trained
    torch.save(dict(state_dict={'layer.weight': torch.zeros(2)}), tmp_path / 'other.pth')
    for command in (['tools/test.py', CONFIG, tmp_path / 'other.pth', '--cfg-options', *options, 'resume=True'],
                    ['tools/train.py', CONFIG, '--cfg-options', *options, f'load_from={tmp_path}/other.pth']):
        assert run_main(monkeypatch, *command, '--work-dir', tmp_path / 'work') == 2
        assert re.search(r"checkpoint '.*other.pth' belongs to another network or other classes: it fits 0 of \d+ "
                         'tensors of the MaskRCNN', capsys.readouterr().err)


def test_custom_data_needs_no_training_data_to_be_tested(trained, tmp_path, monkeypatch, capsys):
    """The config for data of one's own, with only held-out data there, and a checkpoint for other classes."""
    work, _, _ = trained
    write_shapes_dataset(tmp_path / 'own', dict(val=2), size=64)
    custom = ['tools/test.py', 'configs/mask_rcnn/partialnet_t0_custom.py', work / 'epoch_1.pth', '--work-dir',
              tmp_path / 'work', '--cfg-options', f'data_root={tmp_path}/own', 'test_dataloader.num_workers=0',
              'test_dataloader.persistent_workers=False', 'test_dataloader.dataset.data_prefix.img=val/',
              'val_dataloader.dataset.data_prefix.img=val/', 'model.roi_head.bbox_head.reg_class_agnostic=True']
    assert run_main(monkeypatch, *custom) == 0
    assert re.search(r'coco/bbox_mAP +-?\d', capsys.readouterr().out)
    assert run_main(monkeypatch, *custom, 'classes=disc') == 2
    said = capsys.readouterr().err
    assert 'belongs to another network or other classes' in said and 'fc_cls.weight is (4, 256)' in said


def test_test_says_which_data_is_missing(trained, tmp_path, monkeypatch, capsys):
    work, options, _ = trained
    assert run_main(monkeypatch, 'tools/test.py', CONFIG, work / 'epoch_1.pth', '--work-dir', tmp_path, '--cfg-options',
                    *options, 'test_dataloader.dataset.data_root=nowhere') == 2
    said = capsys.readouterr().err
    assert "the data is missing: 'nowhere/annotations/instances_val.json' of test_dataloader" in said
    assert '--cfg-options test_dataloader.dataset.data_root=' in said
