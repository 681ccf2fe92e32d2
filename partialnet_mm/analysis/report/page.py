# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The page: what the logs and the last validation of a work folder say about a training."""
import html
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ...checkpoint.atomic import write_atomically
from ...version import __version__
from . import charts
from .detections import Fate, Judged, average_precision, best_threshold, by_image, confusion, judge
from .record import Record, latest_record

#: Images with errors that the page shows.
SHOWN = 8
#: Classes in a confusion matrix and in a chart of precision and recall; of more, those with the most errors.
MOST_CLASSES = 25
MOST_CURVES = 10
COLOURS = {Fate.RIGHT: '#15803d', Fate.MISSED: '#dc2626', Fate.DOUBLED: '#d97706', Fate.WRONG_CLASS: '#9333ea',
           Fate.NOTHING: '#2563eb'}
STYLE = '''
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1120px; margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; border-bottom: 1px solid #d9dee5; }
.note { color: #5b6875; margin: 4px 0 12px; } .wide { overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.tile { border: 1px solid #d9dee5; border-radius: 8px; padding: 10px 16px; min-width: 110px; }
.tile b { display: block; font-size: 22px; } .tile span { color: #5b6875; font-size: 13px; }
.charts { display: flex; flex-wrap: wrap; gap: 16px; }
.charts > svg { flex: 1 1 340px; max-width: 540px; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid #e6eaef; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .heat td { min-width: 44px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: 18px; }
.picture { width: 100%; height: auto; display: block; } figure { margin: 0; } figcaption { margin: 4px 0; }
.key span { display: inline-block; margin-right: 16px; } .key i { display: inline-block; width: 22px; height: 0;
border-top: 3px solid; margin-right: 5px; vertical-align: middle; }
pre { background: #f5f7f9; padding: 12px; overflow-x: auto; font-size: 13px; }
@media (max-width: 560px) { .pictures { grid-template-columns: 1fr; } }
'''


class Logs(NamedTuple):
    """Lines of the log of a training, over all its runs."""

    train: list[dict[str, float]]
    validation: list[dict[str, float]]


def write_report(work_dir: Path, path: Path | None = None) -> Path:
    """Writes the report of a training as one HTML page that needs no other file and no network.

    The page shows losses and metrics over time, and, of the last validation: AP by class and size, precision and
    recall, a confusion matrix and the images with the most errors for detectors; IoU by class for segmentors; accuracy
    by class for classifiers. It ends with speed, memory, the command and the config. What a work folder does not have
    is named in the page.

    Args:
        work_dir: Work folder of tools/train.py.
        path: The page to write. Defaults to ``report.html`` in the work folder.

    Returns:
        The path of the page.

    Raises:
        ValueError: If the folder has no log of a training.
        OSError: If the page cannot be written.
    """
    logs = read_logs(work_dir)
    record = latest_record(work_dir)
    path = path or work_dir / 'report.html'
    about, task = record.about, record.about.get('task')
    sections = [_summary(work_dir, logs, about), _curves(logs)]
    if task:
        sections.append({'detection': _detection, 'segmentation': _segmentation,
                         'classification': _classification}[task](record))
    else:
        sections.append(_section('The last validation', note=(
            'Nothing was recorded of it. tools/train.py records the validations of detectors with upright boxes, of '
            'segmentors and of classifiers.')))
    sections += [_speed(logs, about), _origin(work_dir, about)]
    title = html.escape(work_dir.resolve().name)
    page = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<style>{STYLE}</style></head><body>{"".join(sections)}</body></html>\n')
    write_atomically(page.encode('utf-8', 'replace'), path)
    return path


def read_logs(work_dir: Path) -> Logs:
    """The logs of all runs in a work folder; a resumed run replaces what it has done again.

    Raises:
        ValueError: If there are none.
    """
    logs = Logs([], [])
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines = []
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # a crash has cut the last line
                continue
        # Lines of the training have a learning rate, or several of them.
        for kept, new in zip(logs, ([line for line in lines if _is_training(line)],
                                    [line for line in lines if not _is_training(line)])):
            if new:
                first = min(_position(line) for line in new)
                kept[:] = [line for line in kept if _position(line) < first] + new
    if not logs.train and not logs.validation:
        raise ValueError(f'{str(work_dir)!r} has no logs of a training: name a work folder of tools/train.py')
    return logs


def _is_training(line: dict) -> bool:
    return any(key == 'lr' or key.endswith('/lr') for key in line)


def _position(line: dict) -> float:
    return line.get('step', line.get('iter', 0))


def _section(title: str, *content: str, note: str = '') -> str:
    note = f'<p class="note">{html.escape(note)}</p>' if note else ''
    return f'<section><h2>{html.escape(title)}</h2>{note}{"".join(content)}</section>'


def _metric_names(logs: Logs) -> list[str]:
    """Metrics of the validation, the main one of each kind first."""
    names = list(dict.fromkeys(key for line in logs.validation for key, value in line.items()
                               if key not in ('step', 'iter', 'epoch', 'time', 'data_time', 'memory')
                               and isinstance(value, (int, float))))
    return sorted(names, key=lambda name: not re.search(r'(mAP|mIoU|top1|AP)$', name))


def _summary(work_dir: Path, logs: Logs, about: dict) -> str:
    tiles = []
    for name in _metric_names(logs)[:4]:
        values = [line[name] for line in logs.validation if name in line]
        if values[-1] != -1:  # COCO's mark of a size without objects
            tiles.append((f'{values[-1]:.4g}', f'{name}, last'))
    if logs.train:
        tiles.append((f'{_position(logs.train[-1]):,}', 'iterations'))
    if about.get('epochs'):
        tiles.append((str(about['epochs']), 'epochs'))
    cells = ''.join(f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
                    for value, name in tiles)
    return (f'<h1>{html.escape(work_dir.resolve().name)}</h1><p class="note">A training with PartialNet-MM '
            f'{html.escape(__version__)}, in {html.escape(str(work_dir))}</p><div class="tiles">{cells}</div>')


def _curves(logs: Logs) -> str:
    drawn = []
    losses = {}
    for name in dict.fromkeys(key for line in logs.train for key in line if 'loss' in key):
        points = [(_position(line), line[name]) for line in logs.train
                  if isinstance(line.get(name), (int, float)) and math.isfinite(line[name])]
        if points:
            losses[name] = tuple(zip(*points))
    if losses:
        drawn.append(charts.curves(losses, 'iteration', 'loss'))
    rates = [(_position(line), line['lr']) for line in logs.train if 'lr' in line]
    if rates:
        drawn.append(charts.curves({'lr': tuple(zip(*rates))}, 'iteration', 'learning rate'))
    # Metrics of one size stand in one chart: AP from 0 to 1, IoU and accuracy in percent.
    groups: dict[str, dict] = {}
    for name in _metric_names(logs):
        points = [(_position(line), line[name]) for line in logs.validation
                  if isinstance(line.get(name), (int, float)) and math.isfinite(line[name]) and line[name] != -1]
        if points:
            groups.setdefault(name.rpartition('/')[2].split('_')[0], {})[name] = tuple(zip(*points))
    drawn += [charts.curves(lines, 'epoch or iteration of the validation', 'metric', marker='o')
              for lines in groups.values()]
    return _section('Losses and metrics', f'<div class="charts">{"".join(drawn)}</div>')


def _detection(record: Record) -> str:
    truth, found, sizes = (record.arrays[name] for name in ('truth', 'found', 'sizes'))
    names = _names(record.about, max([-1, *truth[:, 5], *found[:, 5]]))
    if not len(truth):
        return _section('The last validation', note=f'The annotations of its {len(sizes)} images have no objects.')
    precision = average_precision(truth, found, sizes, len(names))
    objects = Counter(int(label) for label in truth[truth[:, 6] == 0, 5])
    rows = [[name, objects[label], *map(_percent, precision.by_class[label])] for label, name in enumerate(names)]
    with np.errstate(all='ignore'):
        means = [np.nanmean(column) if not np.isnan(column).all() else np.nan for column in precision.by_class.T]
    rows.append(['all', sum(objects.values()), *map(_percent, means)])
    headings = ['class', 'objects', 'AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large']
    content = [_section('AP by class and size', charts.table(headings, rows), note=(
        f'Boxes of {len(sizes)} held-out images, in percent, after {_when(record.about)}. Sizes are of the box: small '
        'is below 32 x 32 pixels, large from 96 x 96.'))]

    by_ap = sorted((label for label in range(len(names)) if objects[label]),
                   key=lambda label: precision.by_class[label, 1])[:MOST_CURVES]
    lines = {f'{names[label]} ({_percent(precision.by_class[label, 1])})': (precision.recall,
                                                                            precision.precision[:, label])
             for label in by_ap}
    more = '' if len(by_ap) == len(objects) else f' The {MOST_CURVES} classes with the lowest AP50.'
    content.append(_section('Precision and recall', '<div class="charts">' + charts.curves(
        lines, 'recall', 'precision', limits=(0, 1.03)) + '</div>', note=f'At an overlap of 0.5; AP50 by class.{more}'))

    threshold = best_threshold(truth, found, len(sizes))
    judged = [judge(objects_, boxes, threshold)
              for objects_, boxes in zip(by_image(truth, len(sizes)), by_image(found, len(sizes)))]
    counts = confusion([box for boxes in judged for box in boxes], len(names))
    fates = Counter(box.fate for boxes in judged for box in boxes)
    kept = _most_confused(counts[:-1, :-1], counts.sum(axis=1)[:-1] + counts.sum(axis=0)[:-1])
    picked = [*kept, len(names)]
    content.append(_section('Confusion matrix', charts.heat_table(
        [*(names[label] for label in kept), 'nothing there'], [*(names[label] for label in kept), 'missed'],
        counts[np.ix_(picked, picked)]), note=(
            f'Boxes with a score of at least {threshold:.2f}, where F1 over all classes is best: '
            + ', '.join(f'{fates[fate]} {fate.value}' for fate in Fate) + '. Doubled boxes are in the row "nothing '
            'there".' + _left_out(kept, names))))
    content.append(_worst_boxes(record, judged, names, threshold))
    return ''.join(content)


def _worst_boxes(record: Record, judged: Sequence[Sequence[Judged]], names: Sequence[str], threshold: float) -> str:
    errors = [sum(box.fate is not Fate.RIGHT for box in boxes) for boxes in judged]
    worst = sorted((number for number in range(len(judged)) if errors[number]), key=lambda number: -errors[number])
    figures, unread = [], 0
    for number in worst:
        if len(figures) == SHOWN:
            break
        picture, factor = charts.read_picture(record.paths[number])
        if picture is None:
            unread += 1
            continue
        overlay = ''.join(charts.box_element(box.box * factor, COLOURS[box.fate], _label(box, names),
                                             dashed=box.fate is Fate.MISSED)
                          for box in sorted(judged[number], key=lambda box: box.fate is not Fate.RIGHT))
        counts = Counter(box.fate for box in judged[number])
        said = ', '.join(f'{counts[fate]} {fate.value}' for fate in Fate if counts[fate])
        figures.append(_figure(charts.picture_element(picture, overlay), record.paths[number], said))
    key = ''.join(f'<span><i style="border-color:{colour};border-top-style:'
                  f'{"dashed" if fate is Fate.MISSED else "solid"}"></i>{fate.value}</span>'
                  for fate, colour in COLOURS.items())
    note = (f'{sum(map(bool, errors))} of {len(judged)} images have errors at a score of at least {threshold:.2f}; '
            f'these have the most.' if any(errors) else
            f'No image has an error at a score of at least {threshold:.2f}.')
    return _section('Images with the most errors', f'<p class="key">{key}</p>' if figures else '',
                    _pictures(figures), note=note + _unread(unread))


def _label(box: Judged, names: Sequence[str]) -> str:
    if box.fate is Fate.MISSED:
        return names[box.true_label]
    told = f'{names[box.label]} {box.score:.2f}'
    return f'{told}, is {names[box.true_label]}' if box.fate is Fate.WRONG_CLASS else told


def _segmentation(record: Record) -> str:
    counts = record.arrays['confusion']
    names = _names(record.about, len(counts) - 1)
    right, truth, found = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(all='ignore'):
        iou, accuracy = right / (truth + found - right), right / truth
    total = max(1, counts.sum())
    rows = [[name, f'{truth[label] / total:.1%}', _percent(iou[label]), _percent(accuracy[label])]
            for label, name in enumerate(names)]
    rows.append(['all', '100.0%', _percent(np.nanmean(iou)) if total > 1 else '-', _percent(right.sum() / total)])
    kept = _most_confused(counts, truth + found)
    content = [
        _section('IoU by class', charts.table(['class', 'of the pixels', 'IoU', 'accuracy'], rows), note=(
            f'{len(record.paths)} held-out images, in percent, after {_when(record.about)}.')),
        _section('Confusion matrix', charts.heat_table([names[label] for label in kept],
                                                       [*(names[label] for label in kept), ''],
                                                       np.pad(counts[np.ix_(kept, kept)], ((0, 0), (0, 1)))),
                 note=f'Pixels.{_left_out(kept, names)}')]
    wrong, figures, unread = record.arrays['wrong'], [], 0
    for number in sorted((int(name[4:]) for name in record.arrays if name.startswith('map_')),
                         key=lambda number: -wrong[number]):
        picture, _ = charts.read_picture(record.paths[number])
        if picture is None:
            unread += 1
            continue
        known = record.arrays[f'truth_{number}'] != 255
        errors = (record.arrays[f'map_{number}'] != record.arrays[f'truth_{number}']) & known
        rows_ = [picture]
        for labels in (record.arrays[f'truth_{number}'], record.arrays[f'map_{number}']):
            coloured = _palette(len(names))[np.minimum(labels, len(names))]
            size = picture.shape[1::-1]
            rows_.append(cv2.resize(coloured, size, interpolation=cv2.INTER_NEAREST) // 2 + picture // 2)
        figures.append(_figure(charts.picture_element(np.concatenate(rows_, axis=1)), record.paths[number],
                               f'{errors.sum() / max(1, known.sum()):.1%} of the pixels wrong'))
    key = ''.join(f'<span><i style="border-color:rgb({r},{g},{b})"></i>{html.escape(name)}</span>'
                  for name, (b, g, r) in zip(names, _palette(len(names)).tolist()))
    return ''.join([*content, _section('Images with the most errors', f'<p class="key">{key}</p>', _pictures(figures),
                                       note='Image, annotation and prediction.' + _unread(unread))])


def _classification(record: Record) -> str:
    truth, found, scores = (record.arrays[name] for name in ('truth', 'found', 'scores'))
    names = _names(record.about, max([-1, *truth, *found]))
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth, found), 1)
    with np.errstate(all='ignore'):
        recall, precision = counts.diagonal() / counts.sum(axis=1), counts.diagonal() / counts.sum(axis=0)
    rows = [[name, counts[label].sum(), _percent(recall[label]), _percent(precision[label])]
            for label, name in enumerate(names)]
    shown = sorted(range(len(names)), key=lambda label: np.nan_to_num(recall[label], nan=2))[:100]
    kept = _most_confused(counts, counts.sum(axis=0) + counts.sum(axis=1))
    content = [
        _section('Accuracy by class', charts.table(['class', 'images', 'accuracy', 'precision'],
                                                   [rows[label] for label in shown]), note=(
            f'{len(truth)} held-out images, in percent, after {_when(record.about)}: '
            f'{(truth == found).mean():.1%} are right. The classes with the lowest accuracy come first.')),
        _section('Confusion matrix', charts.heat_table([names[label] for label in kept],
                                                       [*(names[label] for label in kept), ''],
                                                       np.pad(counts[np.ix_(kept, kept)], ((0, 0), (0, 1)))),
                 note=f'Images.{_left_out(kept, names)}')]
    figures, unread = [], 0
    for number in sorted(np.flatnonzero(truth != found), key=lambda number: -scores[number]):
        if len(figures) == SHOWN or unread > 100:
            break
        picture, _ = charts.read_picture(record.paths[number])
        if picture is None:
            unread += 1
            continue
        figures.append(_figure(charts.picture_element(picture), record.paths[number],
                               f'{names[found[number]]} {scores[number]:.2f}, is {names[truth[number]]}'))
    return ''.join([*content, _section('Wrong with the highest scores', _pictures(figures), note=_unread(unread))])


def _speed(logs: Logs, about: dict) -> str:
    rows = []
    times = [line['time'] for line in logs.train if line.get('time')]
    if times:
        step = statistics.median(times)
        rows.append(['seconds per iteration, median', f'{step:.3f}'])
        if about.get('batch'):
            rows.append(['images per second', f'{about["batch"] * about.get("processes", 1) / step:.1f}'])
        loading = [line['data_time'] for line in logs.train if 'data_time' in line]
        if loading:
            rows.append(['of it waiting for images', f'{statistics.median(loading) / step:.1%}'])
    validation = [line['time'] for line in logs.validation if line.get('time')]
    if validation:
        rows.append(['seconds per batch of the validation', f'{statistics.median(validation):.3f}'])
    memory = [line['memory'] for line in logs.train if line.get('memory')]
    if about.get('gpu_memory_mib') or memory:
        rows.append(['GPU memory, peak (MiB)', f'{about.get("gpu_memory_mib") or max(memory):,.0f}'])
    if about.get('resident_mib'):
        rows.append(['memory of the process, peak (MiB)', f'{about["resident_mib"]:,.0f}'])
    for key, name in (('device', 'device'), ('processes', 'processes'), ('batch', 'images per process and iteration'),
                      ('torch', 'torch'), ('python', 'Python')):
        if about.get(key):
            rows.append([name, about[key]])
    return _section('Speed and memory', charts.table(['', ''], rows)) if rows else ''


def _origin(work_dir: Path, about: dict) -> str:
    content = f'<pre>{html.escape(about["command"])}</pre>' if about.get('command') else ''
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if configs:
        content += (f'<details><summary>{html.escape(configs[-1].name)}</summary>'
                    f'<pre>{html.escape(configs[-1].read_text(encoding="utf-8", errors="replace"))}</pre></details>')
    return _section('Command and config', content, note='' if content else 'The work folder has neither.')


def _names(about: dict, largest: float) -> list[str]:
    """Names of the classes; labels that have none are called by their number."""
    names = [str(name) for name in about.get('classes') or ()]
    return names + [str(label) for label in range(len(names), int(largest) + 1)]


def _most_confused(counts: np.ndarray, every: np.ndarray) -> list[int]:
    """The classes that a confusion matrix shows, in their order."""
    errors = every - 2 * counts.diagonal()
    return sorted(np.argsort(-errors, kind='stable')[:MOST_CLASSES].tolist())


def _left_out(kept: Sequence[int], names: Sequence[str]) -> str:
    return '' if len(kept) == len(names) else f' The {len(kept)} of {len(names)} classes with the most errors.'


def _palette(classes: int) -> np.ndarray:
    """A colour per label in BGR, and grey for what the annotations leave out."""
    hues = np.arange(classes) * 180 // max(1, classes)
    hsv = np.stack((hues, np.full(classes, 190), np.full(classes, 235)), axis=1).astype(np.uint8)[None]
    return np.concatenate((cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0], np.full((1, 3), 128, np.uint8)))


def _figure(picture: str, path: str, text: str) -> str:
    return f'<figure>{picture}<figcaption>{html.escape(Path(path).name)}: {html.escape(text)}</figcaption></figure>'


def _pictures(figures: Sequence[str]) -> str:
    return f'<div class="pictures">{"".join(figures)}</div>'


def _unread(count: int) -> str:
    return f' {count} images could not be read again.' if count else ''


def _when(about: dict) -> str:
    return f'epoch {about["epoch"]}' if about.get('epoch') else f'iteration {about.get("iteration", "?")}'


def _percent(value: float) -> str:
    return '-' if np.isnan(value) else f'{100 * value:.1f}'
