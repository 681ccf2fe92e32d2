# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Weights on their way: from a pretraining run, published, converted, into detectors and segmentors."""
import hashlib
import json
import logging
import os
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from PIL import Image
from safetensors import safe_open

from partialnet_mm.version import __version__
from tests.helpers import reference_network
from tests.helpers.libraries import ROOT, build_model, readme_snippets, shipped_config

CONVERT, PUBLISH = 'official_to_mm.py', 'publish_model.py'
T0 = dict(embed_dim=32, depths=(1, 2, 6, 4), num_heads=4)
PAGE = ROOT / 'docs/checkpoints.md'
# Batch norm has five tensors; a returned map has a norm of its own.
RETURNED_NORMS = 4 * 5


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a converter in this process: exit status, and what it prints on either stream."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / 'tools/model_converters' / tool), run_name='__main__')
            status = 0
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def log(monkeypatch):
    """What is logged: level and text."""
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'log', lambda level, text: lines.append((level, text)))
    return lines


def save(content, path):
    torch.save(content, path)
    return path


def assert_same(got, expected):
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@pytest.fixture(scope='module', params=['plain', 'EMA'])
def pretrained(request, tmp_path_factory):
    """What a pretraining of three iterations leaves: the checkpoint's path, and the weights of its last step."""
    pytest.importorskip('mmpretrain')
    root = tmp_path_factory.mktemp('pretraining')
    rng = np.random.default_rng(0)
    for split, images in (('train', 3), ('test', 1)):
        for kind in range(2):
            (root / split / f'{kind}').mkdir(parents=True)
            for i in range(images):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(root / split / f'{kind}/{i}.png')
    cfg = Config.fromfile(ROOT / 'configs/cifar10/partialnet_t0_cifar10.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root)
    cfg.train_cfg.update(max_epochs=1)
    cfg.param_scheduler = None
    cfg.optim_wrapper.optimizer.lr = 0.1
    cfg.update(work_dir=str(root / 'work'), experiment_name=f'pretraining_{request.param}', log_level='WARNING')
    if request.param == 'EMA':
        cfg.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
    runner = Runner.from_cfg(cfg)
    runner.train()
    return root / 'work/epoch_1.pth', {name: value.clone() for name, value in runner.model.state_dict().items()}


def detector(checkpoint, arch='t0', prefix='backbone.'):
    """Mask R-CNN of the config for own data, with a pretrained backbone."""
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn/partialnet_t0_custom.py')
    cfg.model.backbone.update(arch=arch, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint), prefix=prefix))
    return build_model(cfg)


def segmentor(checkpoint, folder):
    """mmseg's semantic FPN as the README changes it, with PartialNet-T0."""
    pytest.importorskip('mmseg')
    base = shipped_config('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py')
    (folder / base.name).write_text(f'_base_ = {str(base)!r}\n')
    (folder / 'my_segmentor.py').write_text(readme_snippets()['my_segmentor.py'])
    cfg = Config.fromfile(folder / 'my_segmentor.py')
    cfg.model.backbone.update(arch='t0', norm_cfg=dict(type='BN'))
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    cfg.model.neck.in_channels = [32, 64, 128, 256]
    return build_model(cfg)


def assert_arrived(model, weights, log, checkpoint):
    """All backbone tensors of a state dict are in a model, and the log says so."""
    backbone = {name[len('backbone.'):]: value for name, value in weights.items() if name.startswith('backbone.')}
    own = model.backbone.state_dict()
    assert len(own) - len(backbone) in (0, RETURNED_NORMS)
    for name, value in backbone.items():
        assert torch.equal(own[name], value), name
    (level, text), = [(level, text) for level, text in log if 'tensors of PartialNet loaded' in text]
    assert level == logging.INFO
    assert text.startswith(f'{len(backbone)} of {len(own)} tensors of PartialNet loaded from {str(checkpoint)!r} '
                           "(prefix 'backbone.')")
    if len(own) > len(backbone):
        assert f'they start afresh ({RETURNED_NORMS}): norm0.weight' in text
    else:
        assert 'norm' not in text
    assert 'missing' not in text and 'mismatched' not in text and 'unexpected' not in text
    return text


@pytest.mark.parametrize('target', ['Mask R-CNN', 'semantic FPN'])
def test_a_pretraining_goes_into_detectors_and_segmentors(target, pretrained, tmp_path, log):
    path, last_step = pretrained
    saved = torch.load(path, weights_only=False)  # made above
    weights = saved['state_dict']
    moved = [name for name, value in weights.items() if not torch.equal(value, last_step[name])]
    # With EMAHook, the checkpoint holds the averages.
    assert ('ema_state_dict' in saved) == (len(moved) > 100) == bool(moved)
    model = detector(path) if target == 'Mask R-CNN' else segmentor(path, tmp_path)
    text = assert_arrived(model, weights, log, path)
    assert text.split(' from ')[0] in PAGE.read_text()
    head = [name for name in weights if name.startswith('head.')]
    assert len(head) == 4
    assert text.endswith(f'in the file, but not under the prefix (4): {", ".join(head)}')


@pytest.mark.parametrize('arch, prefix', [('t1', 'backbone.'), ('t0-appendix', 'backbone.'), ('t0', 'head.'),
                                          ('t0', None)])
def test_wrong_weights_stop_a_detector(arch, prefix, pretrained, log):
    with pytest.raises(ValueError, match=r'(?s)only \d+ of \d+ tensors of PartialNet.*at least 90% must match'):
        detector(pretrained[0], arch, prefix)
    assert [text for _, text in log if 'loaded' in text] == []


@pytest.mark.parametrize('options', [[], ['--no-ema']])
def test_a_published_checkpoint_holds_the_weights_alone_and_its_hash(options, pretrained, tmp_path, command, log):
    path, last_step = pretrained
    saved = torch.load(path, weights_only=False)
    status, out, err = command(PUBLISH, path, tmp_path / 'sub' / 'net.pth', *options)
    if options and 'ema_state_dict' not in saved:
        assert (status, out) == (2, '')
        assert err.endswith("there is no 'ema_state_dict', so no averages were taken\n") and err.count('\n') == 1
        assert list(tmp_path.iterdir()) == []
        return
    assert (status, err) == (0, '')
    published, = (tmp_path / 'sub').iterdir()
    dropped = sorted(set(saved) - {'state_dict', 'meta'})
    assert {'message_hub', 'optimizer'} <= set(dropped)
    assert out == f'{len(last_step)} tensors; left out: {", ".join(dropped)}\n{published}\n'
    content = published.read_bytes()
    assert published.name == f'net-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    assert len(content) < path.stat().st_size / 2  # Adam alone keeps twice the weights
    # torch.hub, which checks the hash where it is asked to, finds it in the name
    assert torch.hub.HASH_REGEX.search(published.name)[1] == published.stem[-8:]

    loaded = torch.load(published, weights_only=True)
    assert set(loaded) == {'state_dict', 'meta'}
    assert_same(loaded['state_dict'], last_step if options else saved['state_dict'])
    assert loaded['meta'] == dict(dataset_meta=dict(classes=('0', '1')), epoch=1, iter=3,
                                  mmengine_version=saved['meta']['mmengine_version'])
    assert str(tmp_path.parent).encode() not in content  # no path of this machine

    assert_arrived(detector(published), loaded['state_dict'], log, published)
    # the same weights give the same name
    assert command(PUBLISH, published, tmp_path / 'sub' / 'net.pth')[0] == 0
    assert list((tmp_path / 'sub').iterdir()) == [published]


def test_a_published_view_leaves_the_rest_of_its_tensor(tmp_path, command):
    source = save(dict(weight=torch.ones(100000)[:9], epoch=torch.tensor(1)), tmp_path / 'in.pth')
    assert source.stat().st_size > 400000
    assert command(PUBLISH, source, tmp_path / 'out.pth')[0] == 0
    published, = tmp_path.glob('out-*')
    assert published.stat().st_size < 4000


@pytest.mark.parametrize('target', ['net', 'net.safetensors'])
def test_safetensors_is_what_is_published_by_default(target, pretrained, tmp_path, command, log):
    saved = torch.load(pretrained[0], weights_only=False)
    status, out, err = command(PUBLISH, pretrained[0], tmp_path / target)
    published, = tmp_path.iterdir()
    assert (status, err) == (0, '') and out.endswith(f'\n{published}\n')
    assert published.name == f'net-{hashlib.sha256(published.read_bytes()).hexdigest()[:8]}.safetensors'
    with safe_open(published, 'pt') as file:
        assert_same({name: file.get_tensor(name) for name in list(file.keys())}, saved['state_dict'])
        metadata = file.metadata()
    assert json.loads(metadata['classes']) == ['0', '1'] and metadata['source'] == f'partialnet_mm {__version__}'
    assert json.loads(metadata['meta']) == dict(dataset_meta=dict(classes=['0', '1']), epoch=1, iter=3,
                                                mmengine_version=saved['meta']['mmengine_version'])
    assert_arrived(detector(published), saved['state_dict'], log, published)
    # what is published again, in either format, holds the same
    assert command(PUBLISH, published, tmp_path / 'again.pth')[0] == 0
    again, = tmp_path.glob('again-*.pth')
    assert_same(torch.load(again, weights_only=True)['state_dict'], saved['state_dict'])


@pytest.mark.parametrize('meta, expected', [
    (dict(classes=('a', 'b'), palette=[(1, 2, 3)], label_map={np.int64(3): np.float64(0.5)}),
     dict(classes=('a', 'b'), palette=[(1, 2, 3)], label_map={3: 0.5})),
    (dict(palette=np.arange(3)), dict(palette=[0, 1, 2])),
    (dict(kind=torch.nn.Linear), 'meta.dataset_meta.kind is a Reference: only text, numbers, and lists'),
], ids=str)
def test_what_a_published_checkpoint_says_of_its_data_is_plain(meta, expected, tmp_path, command):
    source = save(dict(state_dict=dict(weight=torch.ones(1)), meta=dict(dataset_meta=meta)), tmp_path / 'in.pth')
    status, _, err = command(PUBLISH, source, tmp_path / 'out.pth')
    if isinstance(expected, str):
        assert status == 2 and expected in err
        return
    published, = tmp_path.glob('out-*')
    got = torch.load(published, weights_only=True)['meta']['dataset_meta']
    assert got == expected and type(next(iter(got.values()))) in (tuple, list)


def test_a_converted_checkpoint_is_published_and_arrives(tmp_path, command, log):
    state = reference_network.random_state(detection=False, **T0)
    source = save(dict(state_dict={f'model.{name}': value for name, value in state.items()}, epoch=299,
                       optimizer_states=[dict(state=dict())]), tmp_path / 'official.ckpt')
    status, out, err = command(CONVERT, source, tmp_path / 'ours.pth')
    assert (status, err) == (0, '')
    converted = torch.load(tmp_path / 'ours.pth', weights_only=True)
    weights = converted['state_dict']
    assert out == f"{tmp_path}/ours.pth: {len(weights)} tensors of PartialNet(arch='t0')\n"
    assert f"ours.pth: {len(weights)} tensors of PartialNet(arch='t0')" in PAGE.read_text()
    assert_arrived(detector(tmp_path / 'ours.pth'), weights, log, tmp_path / 'ours.pth')
    assert command(PUBLISH, tmp_path / 'ours.pth', tmp_path / 'net.pth')[0] == 0
    published, = tmp_path.glob('net-*.pth')
    assert_same(torch.load(published, weights_only=True)['state_dict'], weights)
    assert torch.load(published, weights_only=True)['meta'] == converted['meta']

    # and back, to the file of the official code
    status, out, err = command(CONVERT, published, tmp_path / 'back.pth', '--reverse')
    assert (status, err) == (0, '')
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['state_dict']
    assert sorted(back) == sorted(state)
    x = torch.randn(1, 3, 64, 64)
    for one, other in zip(reference_network.forward(back, x, T0['depths'], 'GELU'),
                          reference_network.forward(state, x, T0['depths'], 'GELU')):
        assert torch.equal(one, other)


def test_weights_of_other_code_go_into_a_detector_as_they_are(tmp_path, command, log):
    """T0 as the official config files of the time of its publication describe it, without and with a conversion."""
    state = reference_network.random_state(32, (1, 2, 8, 2), 4, False, with_spatial=False)
    source = save({f'model.{name}': value for name, value in state.items()}, tmp_path / 'official.pth')
    status, out, err = command(CONVERT, source, tmp_path / 'ours.safetensors')
    assert (status, err) == (0, '')
    options = out.splitlines()[-1].removeprefix('On a command line: --cfg-options ')
    assert options == 'model.backbone.arch=t0-appendix model.backbone.spatial_attention=none'
    outputs = []
    for checkpoint in (source, tmp_path / 'ours.safetensors'):
        pytest.importorskip('mmdet')
        cfg = Config.fromfile(ROOT / 'configs/mask_rcnn/partialnet_t0_custom.py')
        cfg.merge_from_dict(dict(option.split('=') for option in options.split()))
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.')
        model = build_model(cfg).eval()
        with torch.no_grad():
            outputs.append(model.backbone(torch.ones(1, 3, 64, 64))[3])
    assert [level for level, text in log if 'tensors of PartialNet loaded' in text] == [logging.INFO] * 2
    assert torch.equal(*outputs)


def test_a_block_that_no_tensor_shows_is_asked_for(tmp_path, command):
    state = reference_network.random_state(40, (1, 2, 8, 2), 1, False, attentions=['none'] * 4, with_spatial=False)
    source = save(state, tmp_path / 'fasternet.pth')
    status, out, err = command(CONVERT, source, tmp_path / 'ours.pth')
    assert (status, out) == (2, '') and '--stage4-block' in err and 'No tensor shows the block' in err
    status, out, _ = command(CONVERT, source, tmp_path / 'ours.pth', '--stage4-block', 'v1')
    assert status == 0 and 'This is FasterNet-T0: configs/ablations/fasternet_t0_in1k.py\n' in out
    status, _, err = command(CONVERT, tmp_path / 'ours.pth', tmp_path / 'back.pth', '--reverse')
    assert status == 2 and '--stage4-block' in err
    assert command(CONVERT, tmp_path / 'ours.pth', tmp_path / 'timm.pth', '--reverse', '--layout', 'timm')[0] == 0
    assert command(CONVERT, tmp_path / 'timm.pth', tmp_path / 'again.pth')[0] == 0
    again, ours = (torch.load(tmp_path / f'{name}.pth', weights_only=True) for name in ('again', 'ours'))
    assert_same(again['state_dict'], ours['state_dict'])
    status, _, err = command(CONVERT, source, tmp_path / 'out.pth', '--layout', 'timm')
    assert status == 2 and '--layout goes with --reverse only' in err


def test_sizes_of_no_variant_are_told_with_what_is_missing(tiny_arch, tmp_path, command):
    sizes = {key: tiny_arch[key] for key in ('embed_dim', 'depths', 'num_heads')}
    source = save(reference_network.random_state(detection=True, **sizes), tmp_path / 'official.pth')
    status, out, _ = command(CONVERT, source, tmp_path / 'ours.pth')
    assert status == 0
    assert f'PartialNet(arch={sizes!r}, out_indices=(0, 1, 2, 3))' in out and 'act_cfg in arch' in out


def test_nothing_is_written_over(tmp_path, command):
    source = save(reference_network.random_state(detection=True, **T0), tmp_path / 'official.pth')
    target = tmp_path / 'ours.pth'
    target.write_text('precious')
    status, out, err = command(CONVERT, source, target)
    assert (status, out, err) == (2, '', f"'{source}' was not converted: '{target}' is not written: it exists. "
                                  '--force overwrites it\n')
    assert target.read_text() == 'precious'
    assert command(CONVERT, source, target, '--force')[0] == 0
    assert 'backbone.norm3.weight' in torch.load(target, weights_only=True)['state_dict']


class Malicious:

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


def bad_file(kind, folder):
    """A file that is no checkpoint to convert or publish, and what is said about it."""
    path = folder / 'bad.pth'
    if kind == 'missing':
        return path, 'does not exist'
    if kind == 'text':
        path.write_text('no\ncheckpoint')
        return path, 'or it is truncated or damaged'
    if kind == 'truncated':
        save(reference_network.random_state(detection=True, **T0), path)
        path.write_bytes(path.read_bytes()[:100000])
        return path, 'is truncated or damaged'
    if kind == 'TorchScript':
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
        return path, 'TorchScript archive, which is a program'
    if kind == 'code':
        save(dict(state_dict={'patch_embed.proj.weight': Malicious(folder / 'ran')}), path)
        return path, 'mkdir is not data'
    save(dict(state_dict={'weight': torch.tensor([1, float('nan')])}), path)
    return path, 'weight'


@pytest.mark.parametrize('tool', [CONVERT, PUBLISH])
@pytest.mark.parametrize('kind', ['missing', 'text', 'truncated', 'TorchScript', 'code', 'NaN'])
def test_bad_files_are_one_line_and_status_2(kind, tool, tmp_path, command):
    path, message = bad_file(kind, tmp_path)
    status, out, err = command(tool, path, tmp_path / 'out.pth')
    assert (status, out) == (2, '') and message in err
    assert err.startswith(f"'{path}' was not ") and err.count('\n') == 1
    assert {p.name for p in tmp_path.iterdir()} <= {'bad.pth'}  # nothing written, nothing run


def test_the_other_layout_is_called_that(tmp_path, command):
    state = reference_network.random_state(detection=False, **T0)
    official = save(state, tmp_path / 'official.pth')
    status, _, err = command(CONVERT, official, tmp_path / 'out.pth', '--reverse')
    assert status == 2 and "not in this project's layout: it is in the official layout" in err
    status, _, err = command(PUBLISH, official, tmp_path / 'out.txt')
    assert status == 2 and f"target '{tmp_path}/out.txt' must end in .safetensors or .pth" in err
    status, _, err = command(CONVERT, official, tmp_path / 'out.pth', '--head-bias')
    assert status == 2 and '--head-bias goes with --reverse only' in err
    with pytest.raises(ValueError, match="another PartialNet: it has depths"):
        detector(official, arch='t0-appendix')


def test_a_trained_head_keeps_its_bias_where_that_is_asked_for(pretrained, tmp_path, command):
    path, _ = pretrained
    status, _, err = command(CONVERT, path, tmp_path / 'out.pth', '--reverse')
    assert status == 2 and re.search(r'head\.layers\.0\.fc\.bias is up to .*--head-bias', err)
    assert command(CONVERT, path, tmp_path / 'out.pth', '--reverse', '--head-bias')[0] == 0
    assert command(CONVERT, tmp_path / 'out.pth', tmp_path / 'again.pth')[0] == 0
    assert_same(torch.load(tmp_path / 'again.pth', weights_only=True)['state_dict'],
                torch.load(path, weights_only=False)['state_dict'])


def test_a_disk_that_keeps_something_else_is_noticed(tmp_path, command, monkeypatch):
    def write_half(content, path):
        with open(path, 'wb') as file:
            file.write(content[:len(content) // 2])

    monkeypatch.setattr('partialnet_mm.checkpoint.atomic.write_atomically', write_half)
    source = save(dict(weight=torch.ones(9)), tmp_path / 'in.pth')
    status, out, err = command(PUBLISH, source, tmp_path / 'out.pth')
    assert (status, out) == (2, '') and 'does not hold what was written to it' in err


def test_a_command_as_a_shell_runs_it(tmp_path):
    done = subprocess.run([sys.executable, f'tools/model_converters/{CONVERT}', str(tmp_path / 'no.pth'), 'out.pth'],
                          capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, '')
    assert re.fullmatch(rf"'{tmp_path}/no.pth' was not converted: checkpoint '.*' does not exist\n", done.stderr)
