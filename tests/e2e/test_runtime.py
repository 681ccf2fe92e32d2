# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The predictor where torch is missing or broken."""
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_models import write_model
from tests.helpers.tool_scripts import run_main
from tests.helpers.wheel import build_wheel
from tests.helpers.whole_models import write_whole_model

BENCHMARK = 'tools/analysis_tools/benchmark_predictor.py'
#: What a predictor must not need.
ABSENT = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'safetensors')


@pytest.fixture
def words(tmp_path):
    """What the command takes: a detector of one masked box, an image, a folder."""
    model = write_whole_model(tmp_path / 'm.onnx', 'detection', boxes=[(4, 6, 20, 18, 0.9, 1)],
                              masks=np.ones((1, 28, 28)), metadata=dict(preprocessing=[
                                  dict(type='resize', size=[80, 80], keep_ratio=True, interpolation='bilinear',
                                       backend='cv2')]))
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / 'a.png')
    return [str(model), str(tmp_path / 'a.png'), '--out-dir', str(tmp_path / 'out')]


def run(*command, path=''):
    environment = dict(os.environ, **(dict(PYTHONPATH=path) if path else {}))
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, timeout=600)


def check_results(folder):
    entry, = json.loads((folder / 'out' / 'predictions.json').read_text())
    assert entry['image_id'] == 'a.png' and entry['bbox'] == [2, 3, 8, 6]
    assert (folder / 'out' / 'pictures' / 'a.png').is_file()


WITHOUT = f'''
import runpy, sys
absent = {ABSENT}
sys.modules.update(dict.fromkeys(absent))
import partialnet_mm
from partialnet_mm.deploy import Predictor
from partialnet_mm import __version__
for line in ('from partialnet_mm import PartialNet', 'partialnet_mm.models', 'partialnet_mm.config_path'):
    try:
        exec(line)
    except ImportError as error:
        print(error)
try:
    partialnet_mm.other
except AttributeError as error:
    print(error)
try:
    runpy.run_module('partialnet_mm.deploy', run_name='__main__')
except SystemExit as leaving:
    print('status', leaving.code)
print(sorted(name for name in absent if sys.modules[name] is not None))
'''


def test_where_torch_is_missing(tmp_path, words):
    done = run(sys.executable, '-c', WITHOUT, *words)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split(', ')[0] for line in said[:3]] == [
        f'partialnet_mm.{name} needs torch' for name in ('PartialNet', 'models', 'config_path')]
    assert 'python -m partialnet_mm.doctor lists' in said[0]
    assert said[3] == "module 'partialnet_mm' has no attribute 'other'" and said[-2:] == ['status 0', '[]']
    check_results(tmp_path)


def test_a_broken_torch_is_not_hidden(tmp_path, words):
    """Except from the command, which does not import it."""
    (tmp_path / 'path' / 'torch').mkdir(parents=True)
    (tmp_path / 'path' / 'torch' / '__init__.py').write_text('raise ImportError("undefined symbol: _ZN3c10")')
    path = os.pathsep.join([str(tmp_path / 'path'), os.environ.get('PYTHONPATH', '')])
    done = run(sys.executable, '-c', 'import partialnet_mm', path=path)
    assert done.returncode == 1 and 'undefined symbol: _ZN3c10' in done.stderr
    done = run(sys.executable, '-m', 'partialnet_mm.deploy', *words, path=path)
    assert done.returncode == 0, done.stderr
    check_results(tmp_path)


@pytest.mark.slow
def test_a_new_environment_has_what_it_needs_and_nothing_else(tmp_path, words):
    """A wheel with its extra 'runtime', from the package index; skipped where there is no index."""
    wheel, python = build_wheel(tmp_path), tmp_path / 'venv' / 'bin' / 'python'
    subprocess.run([sys.executable, '-m', 'venv', str(tmp_path / 'venv')], check=True)
    done = run(python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', f'{wheel}[runtime]')
    if done.returncode:
        pytest.skip(f'onnxruntime cannot be installed here: {done.stderr.strip().splitlines()[-1]}')
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    code = (f'import importlib.util\nprint([n for n in {ABSENT} if importlib.util.find_spec(n)])\n'
            'import partialnet_mm.deploy\nprint(partialnet_mm.__file__)\nfrom partialnet_mm import PartialNet')
    done = subprocess.run([str(python), '-c', code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    found, file = done.stdout.splitlines()
    assert found == '[]' and file.startswith(str(tmp_path / 'venv'))
    assert 'ImportError: partialnet_mm.PartialNet needs torch, which is not installed' in done.stderr
    done = subprocess.run([str(python), '-m', 'partialnet_mm.deploy', *words], capture_output=True, text=True,
                          cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    check_results(tmp_path)


def test_the_benchmark_of_whole_calls(monkeypatch, capsys, tmp_path, tiny_arch, randomize_norms, words):
    pytest.importorskip('mmpretrain')
    config, checkpoint = write_model('classifier', tmp_path, tiny_arch, randomize_norms)
    given = [config, checkpoint, write_whole_model(tmp_path / 'c.onnx', 'classification')]
    assert run_main(monkeypatch, BENCHMARK, *given, words[1], '--rounds', 2) == 0
    said = capsys.readouterr().out
    assert '1 images, 2 rounds' in said
    for name in ('PyTorch', 'PyTorch, merged', 'predictor'):
        milliseconds, times = re.search(rf'^\| {name} \| (\S+) .*\| (\S+) \(.*$', said, re.M).groups()
        assert float(milliseconds) >= 0 and float(times) > 0
    assert run_main(monkeypatch, BENCHMARK, *given, 'none.jpg') == 2
    assert "file 'none.jpg' does not exist" in capsys.readouterr().err
    options = ('--cfg-options', 'model.head.num_classes=7')
    assert run_main(monkeypatch, BENCHMARK, *given, words[1], *options) == 2
    assert 'does not fit the config' in capsys.readouterr().err
