# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The own-data config from end to end on drawn shapes: preflight, training, test, inference."""
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


def loader_options(*splits):
    """Loads images in the process itself."""
    return [f'{split}_dataloader.{option}' for split in splits
            for option in ('num_workers=0', 'persistent_workers=False')]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Data, and the work folder of a training of one epoch for two of its three classes, in the other order."""
    pytest.importorskip('mmdet')
    root = tmp_path_factory.mktemp('own_data')
    write_data(root / 'data')
    options = [f'data_root={root}/data', "classes=['triangle','disc']", 'train_cfg.max_epochs=1',
               'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1', 'train_dataloader.dataset.times=1',
               *loader_options('train', 'val', 'test')]
    done = subprocess.run(
        [sys.executable, 'tools/train.py', CUSTOM, '--work-dir', root / 'work', '--cfg-options', *options],
        cwd=ROOT, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


@pytest.fixture(params=[False, True], ids=['config of the repository', 'config of the work folder'])
def config(request, trained):
    """A config, and the options that it needs; None if it was saved by the training."""
    if request.param:
        return trained / 'work' / CUSTOM.name, []
    return CUSTOM, ['--cfg-options', f'data_root={trained}/data', 'classes=disc,triangle', *loader_options('test')]


def test_the_training_saves_all_settings(trained):
    saved = Config.fromfile(trained / 'work' / CUSTOM.name)
    assert saved.own_data is True
    assert saved.train_dataloader.dataset.dataset.data_root == f'{trained}/data'
    for loader in (saved.val_dataloader, saved.test_dataloader):
        dataset = loader.dataset
        assert (dataset.data_root, dataset.metainfo.classes) == (f'{trained}/data', ('disc', 'triangle'))
    assert saved.model.roi_head.mask_head.num_classes == 2
    assert (trained / 'work/epoch_1.pth').is_file()


def test_predictions_and_pictures(trained, config, monkeypatch, capsys, tmp_path):
    path, options = config
    saved = (trained / 'work' / CUSTOM.name).read_bytes()
    words = [path, trained / 'work/epoch_1.pth', '--work-dir', trained / 'work']
    out, pictures = ['--out', tmp_path / 'found.pkl'], ['--show-dir', tmp_path / 'pictures']
    assert run_main(monkeypatch, 'tools/test.py', *words, *out, *pictures, *options) == 0
    assert re.search(r'coco/segm_mAP +-?[\d.]+', capsys.readouterr().out)
    found = pickle.loads((tmp_path / 'found.pkl').read_bytes())
    assert len(found) == 2 and all(set(sample['pred_instances']['labels'].tolist()) <= {0, 1} for sample in found)
    assert len(list((tmp_path / 'pictures').rglob('*.jpg'))) == 2
    # The config of the training stays in the work folder.
    assert (trained / 'work' / CUSTOM.name).read_bytes() == saved

    # A second run is refused; --force allows it, but not over the images of the test.
    images = ['--show-dir', trained / 'data/images', '--force']
    for more, message in ((out, r'found\.pkl. is not written: it exists'), (pictures, 'pictures. is not empty'),
                          (images, 'lies in the folder of the images')):
        assert run_main(monkeypatch, 'tools/test.py', *words, *more, *options) == 2
        assert re.search(message, capsys.readouterr().err)


def test_inference(trained, config, monkeypatch, tmp_path):
    """By the saved config also where the data is missing."""
    path, options = config
    image = shutil.copy(next((trained / 'data/images').iterdir()), tmp_path / 'a.jpg')
    here = (trained / 'data').rename(trained / 'data' if options else trained / 'elsewhere')
    try:
        assert run_main(monkeypatch, 'tools/infer.py', path, trained / 'work/epoch_1.pth', image, '--out-dir',
                        tmp_path / 'out', '--device', 'cpu', '--score-thr', 0, *options) == 0
    finally:
        here.rename(trained / 'data')
    found = json.loads((tmp_path / 'out/predictions/a.jpg.json').read_text())
    assert set(found['classes']) <= {'disc', 'triangle'}


def test_inference_without_knowing_the_classes(trained, monkeypatch, capsys, tmp_path):
    image = next((trained / 'data/images').iterdir())
    assert run_main(monkeypatch, 'tools/infer.py', CUSTOM, trained / 'work/epoch_1.pth', image, '--out-dir',
                    tmp_path / 'out', '--device', 'cpu') == 2
    assert re.search('belongs to another network(.|\n)*use the config that the training saved', capsys.readouterr().err)


@pytest.mark.parametrize('options, status, text', [
    ([], 0, 'category not trained'), (['val_dataloader.dataset.ann_file=a.json'], 1, 'annotations missing'),
    (["classes=['disc','star']"], 1, "the config trains ['star']")])
def test_preflight(trained, options, status, text, monkeypatch, capsys):
    options = [f'data_root={trained}/data', "classes=['disc','box']", *options]
    words = [CUSTOM, '--images', 'all', '--cfg-options', *options]
    assert run_main(monkeypatch, 'tools/misc/preflight.py', *words) == status
    assert text in capsys.readouterr().out


@pytest.mark.parametrize('words, text', [
    (['nowhere.py'], "config 'nowhere.py' does not exist"),
    ([CUSTOM, '--images', '-3'], '--images must be a positive')])
def test_wrong_usage_of_preflight(words, text, monkeypatch, capsys):
    assert run_main(monkeypatch, 'tools/misc/preflight.py', *words) == 2
    said = capsys.readouterr().err
    assert text in said
