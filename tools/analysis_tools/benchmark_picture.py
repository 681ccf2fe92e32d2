# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The paper's Figure 2 on the machine at hand: printed accuracy over measured speed."""
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """A network: its name in the paper, top-1 as printed there (%), and what was measured (ms, or images a second)."""

    name: str
    top1: float
    measured: float


def family(name: str) -> str:
    """What variants of different sizes have in common: 'PartialNet' for 'PartialNet-T0'."""
    return re.split(r'[- ](?=[A-Z\dx])', name)[0]


def draw(points: Sequence[Point], label: str, title: str, path: Path) -> None:
    """Draws one line a family, PartialNet's last and thickest.

    Args:
        points: At least one.
        label: Of the measured axis.
        title: What it was measured on.
        path: .png, .svg or .pdf.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 5.5), layout='constrained')
    families = sorted({family(point.name) for point in points}, key=lambda name: (name == 'PartialNet', name))
    for index, name in enumerate(families):
        color = 'C3' if name == 'PartialNet' else f'C{index % 9 + (index % 9 > 2)}'  # all but its red
        members = sorted((point for point in points if family(point.name) == name), key=lambda point: point.measured)
        axes.plot([point.measured for point in members], [point.top1 for point in members],
                  marker='osD^vP'[index % 6], color=color,
                  linewidth=2.5 if name == 'PartialNet' else 1, label=name)
        for point in members:
            axes.annotate(point.name[len(name):].lstrip('- '), (point.measured, point.top1), fontsize=8,
                          xytext=(4, -9), textcoords='offset points')
    axes.set_xscale('log')
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks('{x:g}')
    axes.set_xlabel(f'{label}, measured')
    axes.set_ylabel('ImageNet-1k top-1 (%) as printed in the paper, not measured here')
    axes.set_title(title, fontsize=9, wrap=True)
    axes.grid(alpha=0.3, which='both')
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
