# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The report of a training: its numbers, its page, and that it never ends a training."""
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from partialnet_mm.analysis.report import ReportHook, write_report
from partialnet_mm.analysis.report.detections import (
    Fate,
    average_precision,
    best_threshold,
    confusion,
    judge,
    overlaps,
)
from partialnet_mm.analysis.report.page import read_logs
from partialnet_mm.analysis.report.record import RECORD, Record, latest_record, read_record, write_record

NAMES = ['<script>alert("a")</script>', '_$x$ & y']
#: Four objects of an image: boxes, label, whether they are left out.
TRUTH = np.array([[0, 0, 0, 40, 40, 0, 0], [0, 50, 0, 90, 40, 0, 0], [0, 0, 50, 40, 90, 1, 0],
                  [0, 50, 50, 90, 90, 1, 0], [0, 100, 0, 200, 90, 0, 1]], float)
#: Right, doubled, wrong class, nothing there, in the region that is left out, and one of a low score.
FOUND = np.array([[0, 1, 1, 40, 40, 0, 0.9], [0, 2, 2, 42, 40, 0, 0.8], [0, 50, 0, 90, 38, 1, 0.7],
                  [0, 5, 95, 25, 120, 0, 0.6], [0, 110, 10, 150, 60, 1, 0.95], [0, 0, 50, 40, 90, 1, 0.2]], float)


def test_overlaps():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 20, 30]], float)
    assert np.allclose(overlaps(boxes, boxes), [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]])
    assert np.allclose(overlaps(boxes[:1], boxes, of_first=True), [[1, 0.5, 0]])


def test_the_fate_of_each_box():
    judged = judge(TRUTH, FOUND, 0.5)
    assert [(box.fate, box.true_label, box.label) for box in judged] == [
        (Fate.RIGHT, 0, 0), (Fate.DOUBLED, 0, 0), (Fate.WRONG_CLASS, 0, 1), (Fate.NOTHING, None, 0),
        (Fate.MISSED, 1, None), (Fate.MISSED, 1, None)]
    assert confusion(judged, 2).tolist() == [[1, 1, 0], [0, 0, 2], [2, 0, 0]]
    # With the low score the third object is found.
    assert sum(box.fate is Fate.RIGHT for box in judge(TRUTH, FOUND, 0.)) == 2
    assert judge(TRUTH[:0], FOUND[:0], 0.5) == []


def test_the_threshold_with_the_best_f1():
    # F1 is 2 / 5 at 0.9, 2 / 6, 2 / 7 and 2 / 8 below, and 4 / 9 with the last one right.
    assert best_threshold(TRUTH, FOUND, 1) == 0.2
    assert best_threshold(TRUTH, FOUND[:-1], 1) == 0.9
    assert best_threshold(TRUTH, FOUND[:0], 1) == 0.5


def test_average_precision_by_class_and_size():
    found = np.column_stack((TRUTH[:4, :6], [0.9, 0.8, 0.7, 0.6]))
    perfect = average_precision(TRUTH, found, np.array([[200, 120]]), 3)
    # 40 x 40 pixels are medium; the last class has no objects.
    assert np.allclose(perfect.by_class[:2], [[1, 1, 1, np.nan, 1, np.nan]] * 2, equal_nan=True)
    assert np.isnan(perfect.by_class[2]).all()
    found[1:, 5] = [1, 0, 0]  # of each class one right at most
    mixed = average_precision(TRUTH, found, np.array([[200, 120]]), 2)
    assert mixed.by_class[0, 1] == pytest.approx(51 / 101) and mixed.by_class[1, 1] == 0
    assert np.allclose(mixed.precision[:, 0], [1] * 51 + [0] * 50)


def write_logs(work_dir: Path, run: str, train: list[dict], validation: list[dict], cut: bool = False) -> None:
    path = work_dir / run / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    lines = '\n'.join(map(json.dumps, [*train, *validation]))
    path.write_text(lines + ('\n{"lr": 0.1, "st' if cut else ''))


def steps(*numbers: int) -> list[dict]:
    return [dict(lr=0.1, loss=1 / number, time=0.5, data_time=0.1, step=number) for number in numbers]


def test_a_resumed_run_replaces_what_it_did_again(tmp_path):
    write_logs(tmp_path, '20300101_000000', steps(10, 20, 30), [{'coco/bbox_mAP': 0.1, 'step': 1}], cut=True)
    write_logs(tmp_path, '20300102_000000', steps(20, 40), [{'coco/bbox_mAP': 0.2, 'step': 2}])
    logs = read_logs(tmp_path)
    assert [line['step'] for line in logs.train] == [10, 20, 40]
    assert [line['coco/bbox_mAP'] for line in logs.validation] == [0.1, 0.2]
    with pytest.raises(ValueError, match='has no logs of a training'):
        read_logs(tmp_path / 'nowhere')


def test_a_record_survives_its_file(tmp_path):
    record = Record(dict(task='detection', classes=NAMES), ['ä.jpg'], dict(truth=TRUTH, sizes=np.array([[1, 2]])))
    write_record(record, tmp_path / 'run' / RECORD)
    again = latest_record(tmp_path)
    assert again.about == record.about and again.paths == record.paths
    assert all(np.array_equal(again.arrays[name], value) for name, value in record.arrays.items())
    (tmp_path / 'run' / RECORD).write_bytes(b'damaged')
    with pytest.raises(ValueError, match='is not the record of a training'):
        read_record(tmp_path / 'run' / RECORD)
    assert latest_record(tmp_path) == Record({}, [], {})


class Page(HTMLParser):
    """The elements, texts and addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ''
        content = path.read_text(encoding='utf-8')
        self.feed(content)
        self.addresses += re.findall(r'url\(([^)]*)\)|@import', content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ('src', 'href', 'xlink:href', 'data', 'action')]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def work_dir(tmp_path):
    work_dir = tmp_path / 'a <b> & c'
    write_logs(work_dir, '20300101_000000', steps(10, 20), [{'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_s': -1, 'step': 1}])
    (work_dir / 'config.py').write_text('lr = "<i>"\n')
    cv2.imwrite(str(tmp_path / '<img>.jpg'), np.full((120, 200, 3), 200, np.uint8))
    return work_dir


RECORDS = dict(
    detection=(dict(truth=TRUTH, found=FOUND, sizes=np.array([[200, 120]])), [
        'AP by class and size', '2 right, 1 missed, 1 doubled, 1 wrong class, 1 nothing there', '<img>.jpg: 2 right']),
    segmentation=(dict(confusion=np.array([[90, 10], [0, 100]]), wrong=np.array([0.5]),
                       map_0=np.zeros((120, 200), np.uint8), truth_0=np.tile(np.uint8([0, 1]), (120, 100))),
                  ['IoU by class', '90.0', '90.9', '50.0% of the pixels wrong']),
    classification=(dict(truth=np.array([1]), found=np.array([0]), scores=np.array([0.75])),
                    ['Accuracy by class', '0.0% are right', f'{NAMES[0]} 0.75, is {NAMES[1]}']))


@pytest.mark.parametrize('task', RECORDS)
def test_the_page(work_dir, task):
    arrays, texts = RECORDS[task]
    about = dict(task=task, classes=NAMES, epoch=1, iteration=20, command='train.py "<u>"', batch=2, processes=1)
    write_record(Record(about, [str(work_dir.parent / '<img>.jpg')], arrays), work_dir / '20300101_000000' / RECORD)
    path = write_report(work_dir)
    assert path == work_dir / 'report.html'
    page = Page(path)
    for text in (*texts, *NAMES, 'a <b> & c', 'train.py "<u>"', 'lr = "<i>"', 'images per second', '0.25'):
        assert text in page.text, text
    assert 'mAP_s' not in page.text
    # Nothing is fetched, and nothing that a user wrote has become an element.
    assert page.addresses and all(not address or address.startswith(('data:image/jpeg;base64,', '#'))
                                  for address in page.addresses)
    assert not {'script', 'u', 'img', 'link', 'iframe'} & set(page.tags)
    assert page.tags.count('image') == 1


def test_a_page_without_a_record_says_so(work_dir):
    assert 'Nothing was recorded of it.' in Page(write_report(work_dir, work_dir / 'other.html')).text
    assert not (work_dir / 'report.html').exists()


def runner_of(tmp_path, dataset) -> SimpleNamespace:
    return SimpleNamespace(
        work_dir=str(tmp_path), timestamp='20300101_000000', rank=0, world_size=1, epoch=3, iter=30,
        logger=logging.getLogger('test_report'), val_dataloader=SimpleNamespace(dataset=dataset),
        train_dataloader=SimpleNamespace(batch_size=4))


class Images(list):
    """A data set of mmdet as the hook reads it."""

    metainfo = dict(classes=tuple(NAMES))

    def get_data_info(self, index):
        return dict(img_path=self[index], instances=[
            dict(bbox=row[1:5].tolist(), bbox_label=int(row[5]), ignore_flag=int(row[6])) for row in TRUTH])


def sample_of(task, path):
    sample = BaseDataElement(metainfo=dict(img_path=path, ori_shape=(120, 200)))
    if task == 'detection':
        found = torch.tensor(FOUND)
        sample.pred_instances = InstanceData(bboxes=found[:, 1:5], labels=found[:, 5].long(), scores=found[:, 6])
    elif task == 'segmentation':
        sample.gt_sem_seg = PixelData(data=torch.tensor([[[0, 0, 1, 255]]]))
        sample.pred_sem_seg = PixelData(data=torch.tensor([[[0, 1, 1, 1]]]))
    elif task == 'classification':
        sample.set_field(torch.tensor([0]), 'pred_label')
        sample.set_field(torch.tensor([1]), 'gt_label')
        sample.set_field(torch.tensor([0.75, 0.25]), 'pred_score')
    return sample


@pytest.mark.parametrize('task', [*RECORDS, 'another'])
def test_the_hook_records_the_last_validation(tmp_path, task, monkeypatch):
    monkeypatch.setattr('sys.argv', ['tools/train.py', 'my config.py'])
    paths = [str(tmp_path / f'{number}.jpg') for number in range(2)]
    runner, hook = runner_of(tmp_path, Images(paths)), ReportHook()
    for _ in range(2):  # validations: the last one counts
        hook.before_val_epoch(runner)
        for index, path in enumerate(paths):
            hook.after_val_iter(runner, index, outputs=[sample_of(task, path)])
        hook.after_val_epoch(runner)
    record = latest_record(tmp_path)
    assert record.about['task'] == (task if task in RECORDS else None)
    assert record.about['classes'] == NAMES and record.about['epoch'] == 3
    assert record.about['command'].endswith(" tools/train.py 'my config.py'")
    arrays = record.arrays
    if task == 'detection':
        assert np.allclose(arrays['truth'], np.concatenate((TRUTH, TRUTH + [1, 0, 0, 0, 0, 0, 0])))
        assert np.allclose(arrays['found'], np.concatenate((FOUND, FOUND + [1, 0, 0, 0, 0, 0, 0])))
        assert arrays['sizes'].tolist() == [[200, 120]] * 2
    elif task == 'segmentation':
        assert arrays['confusion'].tolist() == [[2, 2], [0, 2]]
        assert np.allclose(arrays['wrong'], 1 / 3) and arrays['map_1'].tolist() == [[0, 1, 1, 1]]
    elif task == 'classification':
        assert [arrays[name].tolist() for name in ('truth', 'found', 'scores')] == [[1] * 2, [0] * 2, [0.75] * 2]
    # The page needs logs. Without them the training has ended all the same.
    hook.after_train(runner)
    assert not (tmp_path / 'report.html').exists()
    write_logs(tmp_path, '20300101_000001', steps(10), [])
    hook.after_train(runner)
    assert (tmp_path / 'report.html').is_file()


def test_the_hook_keeps_few_maps(tmp_path):
    paths = [f'{number}.jpg' for number in range(9)]
    runner, hook = runner_of(tmp_path, Images(paths)), ReportHook()
    for index, path in enumerate(paths):
        hook.after_val_iter(runner, index, outputs=[sample_of('segmentation', path)])
    assert sum('map' in kept for kept in hook.samples) == 6
    hook.after_val_epoch(runner)
    assert sum(name.startswith('map_') for name in latest_record(tmp_path).arrays) == 6


def test_an_error_is_a_warning(tmp_path, caplog):
    runner = runner_of(tmp_path, dataset=object())
    hook = ReportHook()
    hook.after_val_iter(runner, 0, outputs=[object()])
    hook.after_val_epoch(runner)
    assert 'no complete report of this training' in caplog.text
