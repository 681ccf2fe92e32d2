# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""tools/analysis_tools/analyze_logs.py: curves and tables from work folders; test_dpconv_walkthrough.py
has the ratios."""
import json

import pytest
from mmengine.config import Config

from tests.helpers.libraries import ROOT
from tests.helpers.tool_scripts import run_main

TOOL = 'tools/analysis_tools/analyze_logs.py'


def write_log(work_dir, values, run='20300101_000000'):
    """The log of one run: what each epoch's validation has measured, between lines of the training."""
    vis_data = work_dir / run / 'vis_data'
    vis_data.mkdir(parents=True)
    lines = [dict(lr=0.1, loss=1., step=50)] + [dict(value, step=epoch) for epoch, value in values.items()]
    (vis_data / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))


def top1(*values, first=1):
    return {epoch: {'accuracy/top1': value, 'accuracy/top5': 99.} for epoch, value in enumerate(values, first)}


def ap(box, mask=None):
    """A validation's AP: at a threshold of 0.5 higher by 0.2, at 0.75 by 0.03."""
    return {f'coco/{kind}_mAP{key}': value + more for kind, value in (('bbox', box), ('segm', mask))
            for key, more in (('', 0), ('_50', 0.2), ('_75', 0.03)) if value is not None}


def test_curves_by_seed(tmp_path, monkeypatch, capsys):
    write_log(tmp_path / 'net_a_seed0', top1(10, 20, 30))
    write_log(tmp_path / 'net_a_seed1', top1(10, 25))
    write_log(tmp_path / 'net_a_seed1', top1(34.5, first=3), '20300102_000000')  # resumed
    write_log(tmp_path / 'net_b', top1(50, 60.125))
    picture = tmp_path / 'curves.png'
    assert run_main(monkeypatch, TOOL, 'curves', *(tmp_path / name for name in ('net_a_seed0', 'net_a_seed1', 'net_b')),
                    '--out', picture) == 0
    assert capsys.readouterr().out.splitlines() == [
        '| network | seeds | epochs | last accuracy/top1, mean | lowest | highest |', '|---|---|---|---|---|---|',
        '| net_a | 2 | 3 | 32.25 | 30.00 | 34.50 |', '| net_b | 1 | 2 | 60.12 | 60.12 | 60.12 |']
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_results_stand_beside_the_papers(tmp_path, monkeypatch, capsys):
    maskrcnn = 'configs/mask_rcnn/partialnet_{}_1x.py'
    runs = {
        # The last epoch and the best; an epoch of an earlier training in the same folder does not count.
        's_full': (maskrcnn.format('s'), {11: ap(.43, .4), 12: ap(.426, .392), 36: ap(.5, .5)}, {}),
        'l_early': (maskrcnn.format('l'), {1: ap(.2, .19)}, {}),
        'm_long': (maskrcnn.format('m'), {36: ap(.45, .41)}, {'train_cfg.max_epochs': 36}),
        's_own_data': (maskrcnn.format('s'), {12: ap(.6, .5)}, {'model.roi_head.bbox_head.num_classes': 3}),
        # Two equal epochs: the first of them, which save_best keeps.
        'fasternet': ('configs/mask_rcnn/fasternet_s_1x.py', {10: ap(.4, .36), 11: ap(.4, .37), 12: ap(.39, .38)}, {}),
        'resnet': ('configs/mask_rcnn/resnet50_1x.py', {12: ap(.381, .345)}, {}),
        't2': (maskrcnn.format('t2'), {12: ap(.36, .34)}, {}),  # which the paper does not have
        's_none': (maskrcnn.format('s'), {12: ap(.36, .34)}, {'model.backbone.spatial_attention': 'none'}),
        'boxes': ('configs/retinanet/retinanet_partialnet_s_1x.py', {12: ap(.36)}, {}),
        't0': ('configs/pretrain/partialnet_t0_in1k.py', {299: top1(74.2, first=299)[299], **top1(73.91, first=300)},
               {}),
        'cifar': ('configs/cifar10/partialnet_t0_cifar10.py', top1(80., first=10), {}),
    }
    for name, (config, values, options) in runs.items():
        write_log(tmp_path / name, values)
        cfg = Config.fromfile(ROOT / config)
        cfg.merge_from_dict(options)
        cfg.dump(tmp_path / name / 'config.py')
    assert run_main(monkeypatch, TOOL, 'table', *(tmp_path / name for name in runs)) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        '| run | epoch | box AP | box AP50 | box AP75 | mask AP | mask AP50 | mask AP75 |',
        '|---|---|---|---|---|---|---|---|',
        '| s_full | 12 of 12, last | 42.6 | 62.6 | 45.6 | 39.2 | 59.2 | 42.2 |',
        '| s_full | 11 of 12, best | 43.0 | 63.0 | 46.0 | 40.0 | 60.0 | 43.0 |',
        "| s_full | the paper's | 42.7 | 64.9 | 46.5 | 39.3 | 61.8 | 42.2 |",
        '| l_early | 1 of 12, last and best | 20.0 | 40.0 | 23.0 | 19.0 | 39.0 | 22.0 |',
        "| l_early | the paper's | 44.7 | 66.3 | 49.0 | 41.0 | 63.7 | 44.2 |",
        '| m_long | 36 of 36, last and best | 45.0 | 65.0 | 48.0 | 41.0 | 61.0 | 44.0 |',
        '| s_own_data | 12 of 12, last and best | 60.0 | 80.0 | 63.0 | 50.0 | 70.0 | 53.0 |',
        '| fasternet | 12 of 12, last | 39.0 | 59.0 | 42.0 | 38.0 | 58.0 | 41.0 |',
        '| fasternet | 10 of 12, best | 40.0 | 60.0 | 43.0 | 36.0 | 56.0 | 39.0 |',
        "| fasternet | the paper's | 39.9 | 61.2 | 43.6 | 36.9 | 58.1 | 39.7 |",
        '| resnet | 12 of 12, last and best | 38.1 | 58.1 | 41.1 | 34.5 | 54.5 | 37.5 |',
        "| resnet | the paper's | 38.0 | 58.6 | 41.4 | 34.4 | 55.1 | 36.7 |",
        '| t2 | 12 of 12, last and best | 36.0 | 56.0 | 39.0 | 34.0 | 54.0 | 37.0 |',
        '| s_none | 12 of 12, last and best | 36.0 | 56.0 | 39.0 | 34.0 | 54.0 | 37.0 |',
        '| boxes | 12 of 12, last and best | 36.0 | 56.0 | 39.0 | - | - | - |',
        '| run | epoch | top-1 |', '|---|---|---|',
        '| t0 | 300 of 300, last | 73.9 |', '| t0 | 299 of 300, best | 74.2 |', "| t0 | the paper's | 73.9 |",
        '| cifar | 10 of 10, last and best | 80.0 |']


@pytest.mark.parametrize('options, message', [
    (('curves', '{}/net', '--metric', 'mAP'), "no log of 'mAP'; it has ['accuracy/top1', 'accuracy/top5'"),
    (('table', '{}'), 'has no config: name the work folder of a training'),
])
def test_missing_results(tmp_path, monkeypatch, capsys, options, message):
    write_log(tmp_path / 'net', top1(10))
    assert run_main(monkeypatch, TOOL, *(option.format(tmp_path) for option in options)) == 2
    assert message in capsys.readouterr().err
