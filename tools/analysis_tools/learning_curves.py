# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Compares trainings by seed: a table of the last values of a metric and, with --out, a picture of its curves.

Work folders whose names differ only in a last "_seed<number>" are runs of one network.
"""
import argparse
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

Curve = dict[int, float]


def read_curve(work_dir: Path, metric: str) -> Curve:
    """The metric by epoch, from all runs of a work folder; a resumed run continues the ones before it.

    Raises:
        ValueError: If the folder has no such metric.
    """
    curve: Curve = {}
    found = set()
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            found.update(values)
            if metric in values and 'lr' not in values:  # training lines have a learning rate
                curve[values['step']] = values[metric]
    if not curve:
        raise ValueError(f'{work_dir} has no log of {metric!r}; it has {sorted(found) or "no logs"}')
    return dict(sorted(curve.items()))


def group(work_dirs: list[Path]) -> dict[str, list[Path]]:
    """The folders of each network's seeds, by the network's name."""
    groups = defaultdict(list)
    for work_dir in work_dirs:
        groups[re.sub(r'_seed\d+$', '', work_dir.name)].append(work_dir)
    return dict(groups)


def draw(curves: dict[str, list[Curve]], metric: str, path: Path) -> None:
    """Draws one line a run, one color a network."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for index, (name, runs) in enumerate(curves.items()):
        for number, run in enumerate(runs):
            axes.plot(list(run), list(run.values()), marker='.', color=f'C{index}', alpha=0.8,
                      label=None if number else name)
    axes.set_xlabel('epoch')
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', type=Path, help='work folders of tools/train.py')
    parser.add_argument('--metric', default='accuracy/top1', help='what to compare (default: accuracy/top1)')
    parser.add_argument('--out', type=Path, help='picture of the curves, .png, .svg or .pdf')
    args = parser.parse_args()
    try:
        curves = {name: [read_curve(path, args.metric) for path in paths]
                  for name, paths in group(args.work_dirs).items()}
    except ValueError as error:
        parser.error(str(error))

    table = Table('network', 'seeds', 'epochs', f'last {args.metric}, mean', 'lowest', 'highest')
    for name, runs in curves.items():
        last = [list(run.values())[-1] for run in runs]
        epochs = sorted({list(run)[-1] for run in runs})
        table.add_row(name, str(len(runs)), ', '.join(map(str, epochs)), f'{statistics.mean(last):.2f}',
                      f'{min(last):.2f}', f'{max(last):.2f}')
    Console().print(table)
    if args.out:
        draw(curves, args.metric, args.out)


if __name__ == '__main__':
    main()
