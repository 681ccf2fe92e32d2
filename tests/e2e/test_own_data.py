# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The own-data config from end to end, on drawn shapes: preflight, training, test with --out and --show-dir, inference."""
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from partialnet_mm.datasets import write_shapes_dataset
from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import run_main

CUSTOM = ROOT / 'configs/mask_rcnn/partialnet_t0_custom.py'


def write_data(root: Path) -> Path:
    """Four images to train, two to validate, in the folders that the config expects."""
    write_shapes_dataset(root, dict(train=4, val=2), size=96)
    (root / 'images').mkdir()
    for split in ('train', 'val'):
        path = root / 'annotations' / f'instances_{split}.json'
        content = json.loads(path.read_text())
        for image in content['images']:
            shutil.copy(root / split / image['file_name'], root / 'images' / f'{split}_{image["file_name"]}')
            image['file_name'] = f'{split}_{image["file_name"]}'
        path.write_text(json.dumps(content))
        shutil.rmtree(root / split)
    return root


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Data, and the work folder of a training of one epoch for two of its three classes, in the other order."""
    pytest.importorskip('mmdet')
    root = tmp_path_factory.mktemp('own_data')
    write_data(root / 'data')
    done = subprocess.run(
        [sys.executable, 'tools/train.py', CUSTOM, '--work-dir', root / 'work', '--cfg-options', f'data_root={root}/data',
         "classes=['triangle','disc']", 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1',
         'default_hooks.checkpoint.interval=1', 'train_dataloader.dataset.times=1', 'train_dataloader.num_workers=0',
         'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
         'val_dataloader.persistent_workers=False', 'test_dataloader.num_workers=0',
         'test_dataloader.persistent_workers=False'],
        cwd=ROOT, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


def test_the_training_saves_everything_written_out(trained):
    saved = Config.fromfile(trained / 'work' / CUSTOM.name)
    assert saved.own_data is True
    for dataset in (saved.train_dataloader.dataset.dataset, saved.val_dataloader.dataset, saved.test_dataloader.dataset):
        assert (dataset.data_root, dataset.metainfo.classes) == (f'{trained}/data', ('disc', 'triangle'))
    assert saved.model.roi_head.mask_head.num_classes == 2
    assert (trained / 'work/epoch_1.pth').is_file()


@pytest.mark.parametrize('saved', [False, True], ids=['config of the repository', 'config of the work folder'])
def test_predictions_and_pictures(trained, saved, monkeypatch, capsys, tmp_path):
    config = trained / 'work' / CUSTOM.name
    before = config.read_bytes()
    words = [config if saved else CUSTOM, trained / 'work/epoch_1.pth', '--work-dir', trained / 'work', '--out',
             tmp_path / 'found.pkl', '--show-dir', tmp_path / 'pictures']
    if not saved:
        words += ['--cfg-options', f'data_root={trained}/data', 'classes=disc,triangle', 'test_dataloader.num_workers=0',
                  'test_dataloader.persistent_workers=False']
    assert run_main(monkeypatch, 'tools/test.py', *words) == 0
    assert re.search(r'coco/segm_mAP +-?[\d.]+', capsys.readouterr().out)
    found = pickle.loads((tmp_path / 'found.pkl').read_bytes())
    assert len(found) == 2 and all(set(sample['pred_instances']['labels'].tolist()) <= {0, 1} for sample in found)
    assert len(list((tmp_path / 'pictures').rglob('*.jpg'))) == 2
    assert config.read_bytes() == before, "the training's config in the work folder stays"

    # A second run is refused before it starts; --force allows it, but not over the images of the test.
    for word, message in (('--out', 'found.pkl.* exists'), ('--show-dir', 'pictures.* is not empty')):
        i = words.index(word)
        rest = words[:2] + words[i:i + 2] + (words[words.index('--cfg-options'):] if not saved else [])
        assert run_main(monkeypatch, 'tools/test.py', *rest) == 2
        assert re.search(message, capsys.readouterr().err)
    images = ['--show-dir', trained / 'data/images', '--force', *words[words.index('--cfg-options'):]] if not saved else [
        '--show-dir', trained / 'data/images', '--force']
    assert run_main(monkeypatch, 'tools/test.py', *words[:2], *images) == 2
    assert 'lies in the folder of the images' in capsys.readouterr().err


@pytest.mark.parametrize('saved', [False, True], ids=['config of the repository', 'config of the work folder'])
def test_inference(trained, saved, monkeypatch, tmp_path):
    """By the saved config also where the data is missing."""
    options = [] if saved else ['--cfg-options', f'data_root={trained}/data', 'classes=disc,triangle']
    image = shutil.copy(next((trained / 'data/images').iterdir()), tmp_path / 'a.jpg')
    if saved:
        monkeypatch.setattr(os.path, 'isdir', lambda path, isdir=os.path.isdir: 'own_data' not in str(path) and isdir(path))
    assert run_main(monkeypatch, 'tools/infer.py', trained / 'work' / CUSTOM.name if saved else CUSTOM,
                    trained / 'work/epoch_1.pth', image, '--out-dir', tmp_path / 'out', '--device', 'cpu', '--score-thr', 0,
                    *options) == 0
    found = json.loads((tmp_path / 'out/predictions/a.jpg.json').read_text())
    assert set(found['classes']) <= {'disc', 'triangle'}


def test_inference_without_knowing_the_classes(trained, monkeypatch, capsys, tmp_path):
    image = next((trained / 'data/images').iterdir())
    assert run_main(monkeypatch, 'tools/infer.py', CUSTOM, trained / 'work/epoch_1.pth', image, '--out-dir',
                    tmp_path / 'out', '--device', 'cpu') == 1
    assert re.search('belongs to another network(.|\n)*use the config that the training saved', capsys.readouterr().err)


@pytest.mark.parametrize('options, status, text', [
    ([], 0, 'category not trained'), (['val_dataloader.dataset.ann_file=a.json'], 1, 'annotations missing'),
    (["classes=['disc','star']"], 1, "the config trains ['star']")])
def test_preflight(trained, options, status, text, monkeypatch, capsys):
    options = [f'data_root={trained}/data', "classes=['disc','box']", *options]
    assert run_main(monkeypatch, 'tools/misc/preflight.py', CUSTOM, '--cfg-options', *options) == status
    assert text in capsys.readouterr().out
