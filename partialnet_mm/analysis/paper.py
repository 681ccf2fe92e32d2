# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What the paper prints: the rows of tools/paper/figures.csv."""
import csv
from pathlib import Path
from typing import NamedTuple


class Figure(NamedTuple):
    """A row of one of the paper's tables; None and '' are what it does not print."""

    table: str
    name: str
    #: A config below ``configs/``, or ``timm:NAME``, ``torchvision:NAME``, ``mmdet:CONFIG``.
    network: str
    #: Parameters (M), as text: the digits show how the paper rounds.
    params: str
    #: Multiply-adds (G), as text.
    flops: str
    #: Of one image on one core of an AMD 73F3 (ms).
    latency: float | None
    #: On ImageNet-1k (%).
    top1: float | None
    #: On COCO (%).
    box_ap: float | None
    mask_ap: float | None
    #: Images per second on a V100.
    throughput: float | None
    #: Height and width of the images.
    size: tuple[int, int]
    #: What this project counts where the paper is known to be off, and the key of the reason.
    counted_params: float | None
    counted_flops: float | None
    reason: str


def read_figures(path: str | Path) -> list[Figure]:
    """Reads the rows of the file, in its order."""
    figures = []
    with open(path, newline='') as file:
        for row in csv.DictReader(file):
            for key in ('latency', 'top1', 'box_ap', 'mask_ap', 'throughput', 'counted_params', 'counted_flops'):
                row[key] = float(row[key]) if row[key] else None
            height, width = map(int, row['size'].split('x'))
            figures.append(Figure(**{**row, 'size': (height, width)}))
    return figures
