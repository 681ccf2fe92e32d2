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

import numpy as np
import pytest
from mmengine.config import Config

from partialnet_mm.analysis.report.detections import average_precision
from partialnet_mm.analysis.report.page import read_logs
from partialnet_mm.analysis.report.record import latest_record
from partialnet_mm.datasets import read_annotated_pictures, write_shapes_dataset
from partialnet_mm.preflight import check_coco, errors_in
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


#: Config, and the metric that its validation logs.
OTHERS = [('faster_rcnn/faster_rcnn_partialnet_t0_custom', 'coco/bbox_mAP'),
          ('semantic_fpn/semantic_fpn_partialnet_t0_custom', 'mIoU'),
          *(pytest.param(name, 'coco/bbox_mAP', marks=pytest.mark.slow) for name in (
              'faster_rcnn/faster_rcnn_partialnet_s_custom', 'rtmdet/rtmdet_partialnet_t0_custom',
              'rtmdet/rtmdet_partialnet_s_custom'))]


@pytest.mark.parametrize('name, metric', OTHERS)
def test_other_configs_train_and_report(trained, name, metric, tmp_path, monkeypatch):
    """One epoch in the test's process; the page is the training's, and nothing in it is fetched."""
    # Visualizers of one name are one object, which writes to the folder of the first training.
    options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.dataset.times=1',
               f'visualizer.name={Path(name).name}', *loader_options('train', 'val', 'test')]
    if name.startswith('semantic'):
        pytest.importorskip('mmseg')
        for split in ('train', 'val'):
            assert run_main(monkeypatch, 'tools/dataset_tools/coco_to_semantic.py',
                            trained / f'data/annotations/instances_{split}.json', trained / 'data/images',
                            tmp_path / 'labels', split) == 0
        options += [f'img_dir={tmp_path}/labels/img_dir', f'ann_dir={tmp_path}/labels/ann_dir',
                    "classes=['background','disc','box','triangle']"]
    else:
        options += [f'data_root={trained}/data']
    work_dir = tmp_path / 'work'
    run_main(monkeypatch, 'tools/train.py', ROOT / f'configs/{name}.py', '--work-dir', work_dir, '--cfg-options',
             *options)
    assert (work_dir / 'epoch_1.pth').is_file()
    (log, ) = work_dir.glob('*/*.log')
    text = log.read_text()
    assert 'chosen from the size of the data and the machine' in text and 'optim_wrapper.optimizer.lr=0.001' in text

    record = latest_record(work_dir)
    assert record.about['epoch'] == 1 and record.about['batch'] == 4 and 'tools/train.py' in record.about['command']
    logged = read_logs(work_dir).validation[-1][metric]
    if metric == 'mIoU':
        counts = record.arrays['confusion']
        iou = counts.diagonal() / (counts.sum(axis=0) + counts.sum(axis=1) - counts.diagonal())
        assert 100 * np.nanmean(iou) == pytest.approx(logged, abs=0.01)
    else:
        found = record.arrays
        assert len(found['truth']) == sum(len(json.loads(path.read_text())['annotations']) for path in (
            trained / 'data/annotations').glob('*_val.json'))
        by_class = average_precision(found['truth'], found['found'], found['sizes'], 3).by_class
        assert np.nanmean(by_class[:, 0]) == pytest.approx(logged, abs=1e-3)
    page = (work_dir / 'report.html').read_text()
    assert 'Images with the most errors' in page and not re.search(r'(src|href)="(?!data:|#)', page)
    # On demand, by the name of the folder alone.
    (work_dir / 'report.html').unlink()
    assert run_main(monkeypatch, 'tools/analysis_tools/analyze_logs.py', work_dir) == 0
    assert (work_dir / 'report.html').read_text() == page


@pytest.mark.parametrize('to', ['coco', 'yolo'])
def test_pictures_of_another_format(to, tmp_path, monkeypatch, capsys):
    """From folders of VOC to the own-data layout and to YOLO; a second time nothing is written."""
    source = tmp_path / 'mine'
    write_shapes_dataset(source, dict(pictures=5), size=64)
    content = json.loads((source / 'annotations/instances_pictures.json').read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    for image in content['images']:
        objects = ''.join(
            '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>'
            '</object>'.format(names[node['category_id']], x, y, x + w, y + h)
            for node in content['annotations'] if node['image_id'] == image['id'] for x, y, w, h in [node['bbox']])
        (source / 'pictures' / image['file_name']).with_suffix('.xml').write_text(
            f'<annotation><filename>{image["file_name"]}</filename>{objects}</annotation>')
    (source / 'pictures/gone.xml').write_text('<annotation><filename>gone.jpg</filename></annotation>')
    words = [source, '--from', 'voc', '--to', to, '--val', '0.4', '--output', tmp_path / 'out']
    assert run_main(monkeypatch, 'tools/dataset_tools/to_coco.py', *words) == 0
    printed = capsys.readouterr().out
    assert 'Left out 1: its image is missing' in printed and re.search(r'images +3 +2\n', printed)
    assert 'gone.xml' in (tmp_path / 'out/left_out.txt').read_text()
    if to == 'coco':
        written = {split: json.loads((tmp_path / f'out/annotations/instances_{split}.json').read_text())
                   for split in ('train', 'val')}
        images = {image['file_name'] for part in written.values() for image in part['images']}
        assert len(images) == 5 and all((tmp_path / 'out/images' / name).is_file() for name in images)
        boxes = sorted(node['bbox'] for part in written.values() for node in part['annotations'])
        assert np.allclose(boxes, sorted(node['bbox'] for node in content['annotations']))
        assert 'train with configs/faster_rcnn or configs/rtmdet' in printed
        files = (str(tmp_path / 'out' / name) for name in ('annotations/instances_train.json', 'images'))
        assert not errors_in(check_coco(*files, masks=False))
    else:
        again = read_annotated_pictures(tmp_path / 'out', 'yolo')
        assert [picture.split for picture in again.pictures].count('val') == 2 and not again.dropped
        boxes = sorted(tuple(np.round(shape.box, 3)) for picture in again.pictures for shape in picture.shapes)
        assert np.allclose(boxes, sorted((x, y, x + w, y + h) for node in content['annotations']
                                         for x, y, w, h in [node['bbox']]), atol=0.01)
    for output, message in ((tmp_path / 'out', 'exists and is not an empty folder'),
                            (source / 'out', 'in the folder of the source')):
        assert run_main(monkeypatch, 'tools/dataset_tools/to_coco.py', *words[:-1], output) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize('words, status, message', [
    (['{}/nowhere', '--from', 'voc'], 2, 'nowhere. does not exist'), (['{}', '--from', 'png'], 2, 'invalid choice'),
    (['{}', '--from', 'voc', '--val', '1'], 2, "from 0 to below 1, got '1'"),
    (['{}', '--from', 'voc', '--label-key', 'a'], 2, '--label-key is for --from via'),
    (['{}', '--from', 'voc'], 1, 'has no image that can be used: 1 times: its image is missing. Nothing was written')])
def test_wrong_usage_of_to_coco(words, status, message, tmp_path, monkeypatch, capsys):
    source = tmp_path / 'mine'
    source.mkdir()
    (source / 'a.xml').write_text('<annotation><filename>a.jpg</filename></annotation>')
    words = [word.format(source) for word in words]
    assert run_main(monkeypatch, 'tools/dataset_tools/to_coco.py', *words) == status
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ['mine']
