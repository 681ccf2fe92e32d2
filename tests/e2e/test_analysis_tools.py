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


def ap(box, mask):
    return {'coco/bbox_mAP': box, 'coco/segm_mAP': mask}


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
        # The last epoch counts, not the best; one of an earlier training in the same folder does not.
        's_full': (maskrcnn.format('s'), {11: ap(.43, .4), 12: ap(.426, .392), 36: ap(.5, .5)}, {}),
        'l_early': (maskrcnn.format('l'), {1: ap(.2, .19)}, {}),
        'm_long': (maskrcnn.format('m'), {36: ap(.45, .41)}, {'train_cfg.max_epochs': 36}),
        's_own_data': (maskrcnn.format('s'), {12: ap(.6, .5)}, {'model.roi_head.bbox_head.num_classes': 3}),
        't0': ('configs/pretrain/partialnet_t0_in1k.py', top1(73.91, first=300), {}),
        'cifar': ('configs/cifar10/partialnet_t0_cifar10.py', top1(80., first=10), {}),
    }
    for name, (config, values, options) in runs.items():
        write_log(tmp_path / name, values)
        cfg = Config.fromfile(ROOT / config)
        cfg.merge_from_dict(options)
        cfg.dump(tmp_path / name / 'config.py')
    assert run_main(monkeypatch, TOOL, 'table', *(tmp_path / name for name in runs)) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        "| run | epoch | box AP | paper's | mask AP | paper's |", '|---|---|---|---|---|---|',
        '| s_full | 12 of 12 | 42.6 | 42.7 | 39.2 | 39.3 |', '| l_early | 1 of 12 | 20.0 | 44.7 | 19.0 | 41.0 |',
        '| m_long | 36 of 36 | 45.0 | - | 41.0 | - |', '| s_own_data | 12 of 12 | 60.0 | - | 50.0 | - |',
        "| run | epoch | top-1 | paper's |", '|---|---|---|---|',
        '| t0 | 300 of 300 | 73.9 | 73.9 |', '| cifar | 10 of 10 | 80.0 | - |']


@pytest.mark.parametrize('options, message', [
    (('curves', '{}/net', '--metric', 'mAP'), "no log of 'mAP'; it has ['accuracy/top1', 'accuracy/top5'"),
    (('table', '{}'), 'has no config: name the work folder of a training'),
])
def test_missing_results(tmp_path, monkeypatch, capsys, options, message):
    write_log(tmp_path / 'net', top1(10))
    assert run_main(monkeypatch, TOOL, *(option.format(tmp_path) for option in options)) == 2
    assert message in capsys.readouterr().err
