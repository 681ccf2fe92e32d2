# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The five commands of docs/dpconv.md on a few drawn images, and the errors that their tools report."""
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from partialnet_mm.models import PartialNet
from partialnet_mm.models.dpconv.fixed_ratios import GATES
from tests.helpers.libraries import ROOT, build_model
from tests.helpers.tool_scripts import run_main

RATIOS = 'tools/analysis_tools/analyze_logs.py ratios'
TO_FIXED = 'tools/model_converters/dpconv_to_fixed.py'
# Runs scripts one after another, as python does each: most of their time is that of imports.
DRIVER = """
import json, os, runpy, sys
for command in json.loads(sys.argv[1]):
    print('<<<next command>>>')
    sys.argv, sys.path[0] = command, os.path.dirname(command[0])
    try:
        runpy.run_path(command[0], run_name='__main__')
    except SystemExit as end:
        if end.code:
            raise
"""
TINY_ARCH = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=2, act_cfg=dict(type='ReLU'))


def run_here(monkeypatch, capsys, script, *arguments):
    """Runs a tool in this process; its output, errors and exit status."""
    script, *words = script.split()
    status = run_main(monkeypatch, script, *words, *arguments)
    out, err = capsys.readouterr()
    return out, err, status


def walk_through():
    """The commands of the page, as lists of words."""
    page = (ROOT / 'docs' / 'dpconv.md').read_text()
    block, = re.findall(r'```bash\n(# 1\..*?)```', page, re.DOTALL)
    return [shlex.split(command, comments=True) for command in re.sub(r'\\\n', ' ', block).splitlines()
            if command and not command.startswith('#')]


@pytest.fixture
def images(tmp_path):
    """Folders of ten classes with two images each, instead of CIFAR-10."""
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for label in range(10):
            folder = tmp_path / 'data' / split / f'class_{label}'
            folder.mkdir(parents=True)
            for i in range(2):
                image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8) + np.uint8(19 * label)
                Image.fromarray(image).save(folder / f'{i}.png')
    return tmp_path / 'data'


def test_the_five_commands(images, tmp_path):
    pytest.importorskip('mmpretrain')
    commands = [words[1:] for words in walk_through() if words[0] == 'python']
    assert [command[0] for command in commands] == [
        'tools/train.py', RATIOS.split()[0], TO_FIXED, 'tools/train.py', 'tools/test.py']
    loaders = [f'{split}_dataloader.{option}' for split in ('train', 'val', 'test') for option in (
        'batch_size=10', 'num_workers=0', 'persistent_workers=False', f'dataset.data_root={images}')]
    tiny = ['train_cfg.max_epochs=2', 'default_hooks.logger.interval=1', 'randomness.seed=0', *loaders]
    for words in commands:
        # All that they write goes into the test's folder, and the trainings end after two epochs of two steps.
        words[:] = [word.replace('work_dirs/', f'{tmp_path}/work_dirs/').replace('epoch_10.pth', 'epoch_2.pth')
                    for word in words]
        if words[0] in ('tools/train.py', 'tools/test.py'):
            words += ['--cfg-options'] * ('--cfg-options' not in words) + tiny
        if 'search' in words[1] and words[0] == 'tools/train.py':
            # All channels, as the config starts with, would not become fewer in two steps.
            words += ['model.warmup_epochs=1', 'model.start_kappa=8']
    done = subprocess.run([sys.executable, '-u', '-c', DRIVER, json.dumps(commands)], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=300, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout[-3000:]
    outs = done.stdout.split('<<<next command>>>')[1:]
    searched, table, converted, retrained, tested = outs

    assert 'split ratios at kappa=8: cost 46208, 1.000 of the budget' in searched
    assert re.search(r'loss_task: \d.* task: \d.* cost_ratio: 1\.0.* cost_factor: 1\.0.* order_penalty: 0', searched)
    rows = re.findall(r'^\| (stages\S+) \| 1/(\d+) \|$', table, re.M)
    assert [name for name, _ in rows] == [f'stages.{i}.{j}' for i, depth in enumerate((1, 2, 6, 4))
                                          for j in range(depth)]
    assert (tmp_path / 'work_dirs' / 'ratios.png').read_bytes()[:4] == b'\x89PNG'
    cfg = Config.fromfile(tmp_path / 'work_dirs' / 'fixed.py')
    ratios = cfg.model.backbone.split_ratio
    assert ratios == [1 / int(denominator) for _, denominator in rows] and ratios[0] == 1 / 8
    base = Config.fromfile(ROOT / 'configs/cifar10/partialnet_t0_cifar10.py')
    del cfg.model.backbone['split_ratio']
    assert cfg.model == base.model and cfg.optim_wrapper == base.optim_wrapper
    fixed = torch.load(tmp_path / 'work_dirs' / 'fixed.pth')
    assert fixed['meta']['split_ratio'] == ratios
    assert fixed['meta']['dataset_meta']['classes'][0] == 'class_0'
    assert f'{len(fixed["state_dict"])} tensors' in converted and f'{tmp_path}/work_dirs/fixed.pth' in converted

    # All that the fixed network has beside the attention's own layers was there.
    assert 'size mismatch' not in retrained and 'unexpected key' not in retrained
    missing, = re.findall(r'missing keys in source state_dict: (.*)', retrained)
    assert missing and all(re.search(r'token_mixer\.(gate|norm|qkv|proj|position_bias)', name)
                           for name in missing.split(', '))
    assert re.search(r'accuracy/top1 +\d', tested)


@pytest.fixture(scope='module')
def searches(tmp_path_factory):
    """Checkpoints of searches: two budgets of one network, gates out of order, another network, none."""
    folder = tmp_path_factory.mktemp('searches')

    def write(name, ratios, kappa=None, mixers='dpconv', arch=TINY_ARCH, change=None):
        model = PartialNet(arch, token_mixers=mixers, split_ratio=ratios)
        state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
        state['objective.epoch'] = torch.tensor(3)
        if change:
            state[change] = -state[change]
        meta = dict(dpconv=dict(kappa=kappa)) if kappa else {}
        torch.save(dict(state_dict=state, meta=dict(meta, dataset_meta=dict(classes=['a']))), folder / name)
        return model

    write('k4.pth', [1 / 2, 1 / 4, 1, 1 / 8, 1 / 64], 4)
    write('k8.pth', [1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 16], 8)
    write('mixed.pth', 1 / 4, mixers=('dpconv_ch', 'dpconv_ch', 'dpconv', 'pat_sf'))
    write('illegal.pth', 1 / 2, change=f'backbone.stages.1.0.token_mixer{GATES}')
    write('fixed.pth', 1 / 4, mixers='pat_ch')
    write('deeper.pth', 1 / 4, arch=dict(TINY_ARCH, depths=(1, 2, 2, 1)))
    (folder / 'damaged.pth').write_bytes(b'PK\x03\x04 nothing')
    return folder


def test_table_picture_and_list(searches, tmp_path, monkeypatch, capsys):
    out, _, status = run_here(monkeypatch, capsys, RATIOS, searches / 'k4.pth', searches / 'k8.pth', '--picture',
                              tmp_path / 'figure_7.svg')
    assert status == 0
    costs = [16**2 / 2 + 32**2 / 4 + 64**2 + 64**2 / 8 + 128**2 / 64,
             16**2 / 4 + 32**2 / 8 + 64**2 / 8 + 64**2 / 8 + 128**2 / 16]
    full = 16**2 + 32**2 + 2 * 64**2 + 128**2
    assert out.splitlines() == [
        '| layer | kappa 4 | kappa 8 |',
        '|---|---|---|',
        '| stages.0.0 | 1/2 | 1/4 |',
        '| stages.1.0 | 1/4 | 1/8 |',
        '| stages.2.0 | 1/1 | 1/8 |',
        '| stages.2.1 | 1/8 | 1/8 |',
        '| stages.3.0 | 1/64 | 1/16 |',
        f'| all, by cost | 1/{full / costs[0]:.2f} | 1/{full / costs[1]:.2f} |',
        f'split_ratio=[0.5, 0.25, 1, 0.125, 0.015625]  # {searches / "k4.pth"}',
        f'split_ratio=[0.25, 0.125, 0.125, 0.125, 0.0625]  # {searches / "k8.pth"}',
    ]
    picture = (tmp_path / 'figure_7.svg').read_text()
    for text in ('kappa 4', 'kappa 8', 'stages.2.1', '1/64', 'split ratio'):
        assert f'<!-- {text} -->' in picture


def test_ratios_of_a_network_searched_in_part(searches, monkeypatch, capsys):
    out, _, status = run_here(monkeypatch, capsys, RATIOS, searches / 'mixed.pth', searches / 'mixed.pth')
    assert status == 0
    assert '| layer | mixed | mixed |' in out and '| stages.2.1 | 1/4 | 1/4 |' in out and 'stages.3' not in out
    assert out.count('split_ratio=[0.25, 0.25, 0.25, 0.25, 0.25]') == 2


@pytest.mark.parametrize('mixers, fixed_mixers', [
    ('dpconv', 'partial_conv'),
    (('dpconv_ch', 'dpconv_ch', 'dpconv_ch', 'dpconv'), ('pat_ch', 'pat_ch', 'pat_ch', 'partial_conv')),
])
def test_fixed_network_computes_what_the_search_did(mixers, fixed_mixers, tmp_path, monkeypatch, capsys,
                                                    randomize_norms):
    ratios = [1 / 2, 1 / 4, 1, 1 / 8, 1 / 64]
    searched = randomize_norms(PartialNet(TINY_ARCH, token_mixers=mixers, split_ratio=ratios)).eval()
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in searched.state_dict().items()}), tmp_path / 'search.pth')
    _, err, status = run_here(monkeypatch, capsys, TO_FIXED, tmp_path / 'search.pth', tmp_path / 'fixed.pth')
    assert status == 0, err
    content = torch.load(tmp_path / 'fixed.pth')
    assert content['meta'] == dict(split_ratio=ratios)
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'fixed.pth'), prefix='backbone.')
    fixed = PartialNet(TINY_ARCH, token_mixers=fixed_mixers, split_ratio=content['meta']['split_ratio'],
                       init_cfg=init_cfg).eval()
    fixed.init_weights()
    fixed.load_state_dict({k[len('backbone.'):]: v for k, v in content['state_dict'].items()}, strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, = searched(x)
        out, = fixed(x)
    assert (out - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize('tool, name, message', [
    (RATIOS, 'fixed.pth', 'is of no search for split ratios: it has no DPConv layers'),
    (TO_FIXED, 'fixed.pth', 'it holds no search of a PartialNet'),
    (RATIOS, 'damaged.pth', 'cannot be read'),
    (TO_FIXED, 'damaged.pth', 'cannot be read'),
    (RATIOS, 'missing.pth', 'does not exist'),
    (TO_FIXED, 'illegal.pth', 'the gates of 1 layers are out of order'),
])
def test_other_checkpoints_are_refused(tool, name, message, searches, tmp_path, monkeypatch, capsys):
    arguments = [searches / name, *([tmp_path / 'out.pth'] if tool == TO_FIXED else [])]
    _, err, status = run_here(monkeypatch, capsys, tool, *arguments)
    assert status == 2 and message in err and name in err
    assert list(tmp_path.iterdir()) == []


def test_gates_out_of_order_and_other_networks_are_reported(searches, monkeypatch, capsys):
    out, _, status = run_here(monkeypatch, capsys, RATIOS, searches / 'illegal.pth')
    assert status == 0
    assert re.search(r'\| stages.1.0 \| 1/\d+ \* \|', out) and '* gates out of order' in out
    _, err, status = run_here(monkeypatch, capsys, RATIOS, searches / 'k4.pth', searches / 'deeper.pth')
    assert status == 2 and 'are of different networks: they have 6 and 5 DPConv layers' in err


@pytest.mark.parametrize('arguments, usage', [
    ([], 'CHECKPOINT'),
    (['a.pth', '--config', 'b.py'], '--config FILE.py and --base CONFIG go together'),
    (['a.pth', '--base', 'configs/cifar10/partialnet_t0_cifar10.py'], '--config FILE.py and --base CONFIG go together'),
    (['a.pth', 'b.pth', '--config', 'c.py', '--base', 'configs/cifar10/partialnet_t0_cifar10.py'], 'one CHECKPOINT'),
    (['a.pth', '--config', 'c.py', '--base', 'no.py'], "config 'no.py' does not exist"),
])
def test_wrong_usage(arguments, usage, monkeypatch, capsys):
    _, err, status = run_here(monkeypatch, capsys, RATIOS, *arguments)
    assert status == 2 and usage in err


@pytest.mark.parametrize('mixers', [('pat_ch', 'pat_ch', 'pat_ch', 'pat_sf'), 'partial_conv', 'pat_ch'], ids=str)
def test_a_search_given_where_a_fixed_network_is_expected(mixers, searches, monkeypatch):
    from mmengine.runner import load_checkpoint
    model = PartialNet(TINY_ARCH, token_mixers=mixers)
    wrapper = torch.nn.Module()
    wrapper.backbone = model
    with pytest.raises(ValueError, match=r'of a search for split ratios: 5 layers have gates, and fixed ratios here, '
                                         r"first 'backbone.stages.0.0.token_mixer'. tools/model_converters/dpconv_to_"):
        load_checkpoint(wrapper, str(searches / 'k4.pth'))
    # Layers of a search fit layers of a search.
    wrapper.backbone = PartialNet(TINY_ARCH, token_mixers='dpconv')
    load_checkpoint(wrapper, str(searches / 'k4.pth'))
    assert wrapper.backbone.stages[2][0].token_mixer.split_gates.split_ratio == 1


@pytest.mark.parametrize('name', ['t0_dpconv_search_cifar10', *(f'{arch}_dpconv_search_in1k' for arch in (
    't0', 't1', 't2', 's', 'm', 'l'))])
def test_search_configs_change_only_what_a_search_needs(name):
    cifar = name.endswith('cifar10')
    base = 'cifar10' if cifar else 'pretrain'
    search = Config.fromfile(ROOT / f'configs/dpconv/partialnet_{name}.py')
    base = Config.fromfile(ROOT / f'configs/{base}/partialnet_{name.replace("_dpconv_search", "")}.py')
    options = dict(type='DPConvClassifier', kappa=4, order_weight=0.9)
    options.update(dict(cost_exponent=-0.3, start_kappa=1, warmup_epochs=2) if cifar else
                   dict(cost_exponent=-0.07, warmup_epochs=20))
    assert {key: search.model.pop(key) for key in options} == options
    assert base.model.pop('type') == 'ImageClassifier'
    assert search.model.backbone.pop('token_mixers') == 'dpconv'
    assert search.default_hooks.pop('ratio') == dict(type='RatioHook')
    gates = dict(lr_mult=5 if cifar else 0.05, decay_mult=0.)
    assert search.optim_wrapper.pop('paramwise_cfg') == dict(custom_keys=dict(split_gates=gates))
    for key, value in base.items():
        assert search[key] == value, key


def test_gates_are_spared_by_weight_decay():
    pytest.importorskip('mmpretrain')
    from mmengine.optim import build_optim_wrapper
    cfg = Config.fromfile(ROOT / 'configs/dpconv/partialnet_t0_dpconv_search_in1k.py')
    model = build_model(cfg)
    optimizer = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper')).optimizer
    gates = {id(p) for name, p in model.named_parameters() if name.endswith(GATES)}
    assert len(gates) == 13
    for group in optimizer.param_groups:
        is_gate = id(group['params'][0]) in gates
        assert group['weight_decay'] == (0 if is_gate else 0.005)
        assert group['lr'] == pytest.approx(4e-3 * (0.05 if is_gate else 1))
