# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a user can get wrong on the command line of any tool is one sentence and status 2, without a traceback."""
import re
import sys
from fractions import Fraction

import pytest
import torch
from PIL import Image

from partialnet_mm.engine.runners.user_errors import command
from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import write_model
from tests.helpers.tool_scripts import run_main

#: Tools that read a config, with the arguments that they need; those that take --cfg-options first.
TOOLS = {
    'tools/train.py': '{config} --work-dir {tmp}/out',
    'tools/test.py': '{config} {checkpoint} --work-dir {tmp}/out',
    'tools/infer.py': '{config} {checkpoint} {image} --out-dir {tmp}/out --device cpu',
    'tools/analysis_tools/get_flops.py': '{config}',
    'tools/analysis_tools/look.py': 'grad_cam {config} {checkpoint} {image} --output {tmp}/out.png',
    'tools/deployment/export_onnx.py': '{config} {checkpoint} --output {tmp}/out.onnx',
    'tools/model_converters/reparameterize_model.py': '{config} {checkpoint} {tmp}/out.pth',
    'tools/misc/preflight.py': '{config}',
    'tools/misc/soak.py': '{config}',
}
WITHOUT_OPTIONS = {
    'tools/analysis_tools/benchmark_training.py': 'resolutions {config}',
    'tools/analysis_tools/benchmark.py': '{config}',
}
#: Those that build the model of the config, and those that read a checkpoint.
BUILDERS = [tool for tool in TOOLS if 'preflight' not in tool and 'soak' not in tool]
READERS = [tool for tool, words in TOOLS.items() if '{checkpoint}' in words]


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """Config and checkpoint of a tiny classifier, and an image."""
    folder = tmp_path_factory.mktemp('tiny')
    arch = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='ReLU'))
    config, checkpoint = write_model('classifier', folder, arch, lambda model: model)
    for split in ('train', 'val'):
        for name in ('blue', 'red'):
            (folder / 'data' / split / name).mkdir(parents=True)
            Image.new('RGB', (64, 64), name).save(folder / 'data' / split / name / 'a.png')
    config.write_text(config.read_text() + ''.join(
        f"{split}_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root='{folder}/data', "
        "metainfo=dict(classes=['blue', 'red'])))\n"
        for split in ('train', 'val', 'test')))
    return dict(config=config, checkpoint=checkpoint, image=folder / 'data/val/red/a.png')


@pytest.fixture
def mistake(tiny, tmp_path, monkeypatch, capsys):
    """Runs a tool with changed arguments; returns the one or two lines that it must end with."""
    def run(tool, *more, **changed):
        arguments = {**TOOLS, **WITHOUT_OPTIONS}[tool].format(**{**tiny, 'tmp': tmp_path, **changed}).split()
        assert run_main(monkeypatch, tool, *arguments, *more) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) <= 2 and said.startswith(f'{tool.rpartition("/")[2]}'), said
        assert not (tmp_path / 'out').exists()
        return said

    return run


def circle(folder):
    (folder / 'b.py').write_text("_base_ = 'wrong.py'\n")
    return b"_base_ = 'b.py'\n"


CONFIGS = {
    'syntax': (b'a = dict(\nb = 1\n', r"wrong\.py' line [12]: .*'(a = dict\(|b = 1)'"),
    'encoding': ('a = "é"\n'.encode('latin-1'), r"wrong\.py' is not UTF-8 text: byte 5 is 0xe9"),
    'null bytes': (b'a = 1\0\n', 'null byte'),
    'base': (b"a = 1\n_base_ = ['nowhere.py']\n", r"wrong\.py' line 2: its base '.*nowhere\.py' does not exist"),
    'circle': (circle, r'has itself as a base: .*wrong\.py -> .*b\.py -> .*wrong\.py'),
    'read_base': (b'from mmengine.config import read_base\nwith read_base():\n    from .nowhere import *\n',
                  r"wrong\.py' line 3: its base '.*nowhere\.py' does not exist"),
    'error': (b'a = 1\nb = c\n', r"wrong\.py', line 2: NameError: name 'c' is not defined"),
    'import': (b"custom_imports = dict(imports=['nowhere'], allow_failed_imports=False)\n",
               "ModuleNotFoundError: No module named 'nowhere'"),
    'model': (b"model = 'resnet'\n", "model must be a dict with a type, got 'resnet'"),
}


def some_and_slow(tools, least):
    """The number of mistakes to try on each tool: all on train.py, and in slow tests on the others."""
    return [*((tool, None if tool == 'tools/train.py' else least) for tool in tools),
            *(pytest.param(tool, None, marks=pytest.mark.slow) for tool in tools if tool != 'tools/train.py')]


@pytest.mark.parametrize('tool, most', some_and_slow([*TOOLS, *WITHOUT_OPTIONS], 1))
def test_configs(tool, most, mistake, tmp_path):
    for content, expected in [*CONFIGS.values()][:most]:
        path = tmp_path / 'wrong.py'
        path.write_bytes(content(tmp_path) if callable(content) else content)
        said = mistake(tool, config=path)
        assert re.search(expected, said), said
    assert re.search(r"config 'nowhere\.py'( does not exist)?", mistake(tool, config='nowhere.py'))
    if tool in TOOLS and most is None:
        (tmp_path / 'config.txt').touch()
        assert 'must end in one of .py, .json, .yaml, .yml' in mistake(tool, config=tmp_path / 'config.txt')
        (tmp_path / 'config.json').write_text('{"a": 1,}')
        assert re.search(r"config\.json'.*JSONDecodeError", mistake(tool, config=tmp_path / 'config.json'))


OPTIONS = {
    'foo': "'foo' is not KEY=VALUE", '=5': "'=5' is not KEY=VALUE", 'a..b=1': r"'a\.\.b=1' is not KEY=VALUE",
    "classes=['a'": r'''classes=\['a': "\['a'" has no closing \]''',
    'resume=maybe': "resume must be True or False, got 'maybe'",
    'log_level=LOUD': "log_level must be DEBUG, INFO, WARNING, ERROR or CRITICAL, got 'LOUD'",
    'optim_wrapper.optimizer.lr=fast': "optim_wrapper.optimizer.lr must be a number from 0 up, got 'fast'",
    'train_dataloader.batch_size=0': 'train_dataloader.batch_size must be a whole number from 1 up, got 0',
    'test_dataloader.batch_size=many': "test_dataloader.batch_size must be a whole number from 1 up, got 'many'",
    'default_hooks.checkpoint.interval=0': 'checkpoint.interval must be a whole number from 1 up, or -1 .*, got 0',
    'train_cfg.max_epochs=0': 'train_cfg.max_epochs must be a whole number from 1 up, got 0',
    'train_dataloader.batch_size.x=1': '--cfg-options train_dataloader.batch_size.x=1: ',
    'test_dataloader.dataset.pipeline.9.x=1': r'--cfg-options test_dataloader\.dataset\.pipeline\.9\.x=1: ',
}


@pytest.mark.parametrize('tool, most', some_and_slow(TOOLS, 5))
def test_options(tool, most, mistake):
    for option, expected in [*OPTIONS.items()][:most]:
        said = mistake(tool, '--cfg-options', option)
        assert re.search(expected, said), said


MODELS = {
    'model.backbone.type=PartialNett': "type 'PartialNett' is not known to the registry 'model' of .*'PartialNet'",
    'model.backbone.arch=t9': "arch .*'t9'", 'model.backbone.foo=1': 'foo'}


@pytest.mark.parametrize('tool, most', some_and_slow(BUILDERS, 1))
def test_models(tool, most, tiny, monkeypatch, tmp_path, capsys):
    arguments = TOOLS[tool].format(**tiny, tmp=tmp_path).split()
    for option, expected in [*MODELS.items()][:most]:
        assert run_main(monkeypatch, tool, *arguments, '--cfg-options', option) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if 'warning' not in line.lower()]
        assert re.search(expected, said[0]) and 'Traceback' not in '\n'.join(said), said


@pytest.mark.parametrize('tool', READERS)
def test_checkpoints(tool, mistake, tiny, tmp_path):
    assert "checkpoint 'nowhere.pth' does not exist" in mistake(tool, checkpoint='nowhere.pth')
    content = torch.load(tiny['checkpoint'], weights_only=False)
    for meta, expected in ((None, 'its meta has the wrong type, NoneType'), ([], 'its meta has the wrong type, list'),
                           (dict(dataset_meta=None), 'its meta.dataset_meta has the wrong type, NoneType'),
                           (dict(dataset_meta=['a']), 'its meta.dataset_meta has the wrong type, list')):
        torch.save(dict(content, meta=meta), tmp_path / 'wrong.pth')
        assert expected in mistake(tool, checkpoint=tmp_path / 'wrong.pth')


@pytest.mark.parametrize('tool', ['tools/infer.py', 'tools/analysis_tools/look.py'])
def test_devices(tool, mistake, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert "argument --device: must be 'cpu', 'cuda' or one GPU such as 'cuda:1', got 'zz'" in mistake(
        tool, '--device', 'zz')
    for device in ('cuda', 'cuda:3'):
        assert f"argument --device: '{device}' is not on this machine: torch sees no GPU" in mistake(
            tool, '--device', device)


def test_debug_shows_the_traceback(mistake, tiny, monkeypatch, tmp_path):
    arguments = TOOLS['tools/train.py'].format(**tiny, tmp=tmp_path).split()
    with pytest.raises(ValueError, match='resume must be True or False'):
        run_main(monkeypatch, 'tools/train.py', *arguments, '--debug', '--cfg-options', 'resume=maybe')


def test_errors_of_others_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, 'argv', [str(ROOT / 'tools/train.py')])
    with pytest.raises(ZeroDivisionError):
        command(lambda: 1 / 0)()
    with pytest.raises(ValueError, match='Invalid literal'):
        command(lambda: Fraction('a'))()


def test_an_unknown_option_is_a_warning(tiny, monkeypatch, tmp_path, capsys):
    """Not so an argument of PartialNet or of the runner that the config leaves at its default."""
    arguments = [str(tiny['config']), '--cfg-options', 'model.backbone.norm_eva=True', 'model.backbone.with_cp=True',
                 'randomness.seed=0', 'modle=1', 'test_dataloader.batch_siz=7']
    assert run_main(monkeypatch, 'tools/misc/preflight.py', *arguments) == 0
    said = capsys.readouterr().err.splitlines()
    assert [re.sub('^preflight.py: warning: --cfg-options adds ', '', line) for line in said] == [
        'model.backbone.norm_eva, which the config does not have; the nearest one is model.backbone.norm_eval',
        'modle, which the config does not have; the nearest one is model',
        'test_dataloader.batch_siz, which the config does not have; the nearest one is test_dataloader.batch_size']
