# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""tools/test.py --tta: a classifier, a detector and a segmentor, by the fragments in configs/_base_/tta."""
import pickle
import re

import cv2
import numpy as np

from partialnet_mm.datasets import write_shapes_dataset
from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import write_model
from tests.helpers.tool_scripts import run_main

LOADER = 'num_workers=0, persistent_workers=False'


def predictions_of(monkeypatch, config, checkpoint, folder, *options):
    """The predictions that tools/test.py writes."""
    assert run_main(monkeypatch, 'tools/test.py', config, checkpoint, '--work-dir', folder / 'work', '--out',
                    folder / 'out.pkl', '--force', *options) == 0
    return pickle.loads((folder / 'out.pkl').read_bytes())


def add(config, text):
    config.write_text(config.read_text() + text)


def test_a_classifiers_scores_are_those_of_image_and_mirror_image(monkeypatch, tmp_path, tiny_arch, randomize_norms):
    config, checkpoint = write_model('classifier', tmp_path, tiny_arch, randomize_norms)
    rng = np.random.default_rng(0)
    for i, name in enumerate(('blue', 'green', 'red')):
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (80, 64))
        for folder, picture in (('plain', image), ('mirror', image[:, ::-1])):
            (tmp_path / folder / 'val' / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / folder / 'val' / name / f'{i}.png'), picture)
    add(config, f"test_dataloader = dict(batch_size=2, {LOADER}, dataset=dict(data_root='{tmp_path}/plain', "
        "metainfo=dict(classes=('blue', 'green', 'red')), pipeline=[dict(type='LoadImageFromFile'), "
        "dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]))\ntest_evaluator = dict(topk=1)\n")
    scores = {}
    for name, options in (('plain', ()), ('both', ('--tta', )), (
            'mirror', ('--cfg-options', f'test_dataloader.dataset.data_root={tmp_path}/mirror'))):
        samples = predictions_of(monkeypatch, config, checkpoint, tmp_path, *options)
        scores[name] = np.stack([sample['pred_score'] for sample in samples])
    np.testing.assert_allclose(scores['both'], (scores['plain'] + scores['mirror']) / 2, rtol=1e-4)
    assert not np.allclose(scores['both'], scores['plain'], rtol=1e-4)


def test_a_detectors_boxes(monkeypatch, capsys, tmp_path, tiny_arch, randomize_norms):
    """Mask R-CNN gives boxes only, and the metric of masks is left out with a warning; --deploy goes with it."""
    config, checkpoint = write_model('detector', tmp_path, tiny_arch, randomize_norms)
    write_shapes_dataset(tmp_path / 'shapes', dict(train=1, val=2), size=64)
    data = tmp_path / 'shapes'
    add(config, f"test_dataloader = dict(batch_size=2, {LOADER}, dataset=dict(data_root='{data}/'))\n"
        f"test_evaluator = dict(ann_file='{data}/annotations/instances_val.json')\n"
        "model.update(test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7), "
        "min_bbox_size=0), rcnn=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10, "
        "mask_thr_binary=0.5)))\n")
    found = {options: predictions_of(monkeypatch, config, checkpoint, tmp_path, *options)
             for options in (('--tta', ), ('--tta', '--deploy'))}
    said = capsys.readouterr().out
    assert 'mmdet merges boxes only; masks are not evaluated' in said
    assert re.search(r'coco/bbox_mAP +-?\d', said) and 'segm_mAP' not in said
    plain, merged = found.values()
    for one, other in zip(plain, merged):
        assert 10 < len(one['pred_instances']['scores']) <= 100 and 'masks' not in one['pred_instances']
        np.testing.assert_allclose(one['pred_instances']['scores'], other['pred_instances']['scores'], atol=1e-4)


def test_a_segmentors_maps(monkeypatch, capsys, tmp_path, tiny_arch, randomize_norms):
    config, checkpoint = write_model('segmentor', tmp_path, tiny_arch, randomize_norms)
    rng = np.random.default_rng(0)
    for kind, shape, top in (('img_dir', (6, 8, 3), 256), ('ann_dir', (6, 8), 4)):
        (tmp_path / kind).mkdir()
        cv2.imwrite(str(tmp_path / kind / 'a.png'), cv2.resize(rng.integers(0, top, shape, dtype=np.uint8), (90, 70),
                                                               interpolation=cv2.INTER_NEAREST))
    add(config, f"_base_ = ['{ROOT}/configs/_base_/runtime/segmentation.py']\n"
        f"test_dataloader = dict(batch_size=1, {LOADER}, sampler=dict(type='DefaultSampler', shuffle=False), "
        f"dataset=dict(type='BaseSegDataset', data_root='{tmp_path}', img_suffix='.png', metainfo=dict("
        "classes=('sky', 'wood', 'lake', 'road'), palette=[(i, 0, 9) for i in range(4)]), "
        "data_prefix=dict(img_path='img_dir', seg_map_path='ann_dir'), pipeline=test_pipeline))\n"
        "test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])\ntest_cfg = dict(type='TestLoop')\n")
    text = config.read_text()
    config.write_text(text.replace(f"_base_ = '{ROOT}/configs/_base_/runtime/default.py'\n", '', 1))
    plain, = predictions_of(monkeypatch, config, checkpoint, tmp_path)
    merged, = predictions_of(monkeypatch, config, checkpoint, tmp_path, '--tta')
    maps = [sample['pred_sem_seg']['data'] for sample in (plain, merged)]
    assert maps[0].shape == maps[1].shape == (1, 70, 90)
    assert 0 < (maps[0] != maps[1]).float().mean() < 0.5
    assert len(re.findall(r'mIoU +\d', capsys.readouterr().out)) >= 2
