# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The figures that the paper prints: the rows of tools/paper/figures.csv."""
import csv
from pathlib import Path
from typing import NamedTuple


class Figure(NamedTuple):
    """A row of one of the paper's tables; None and '' are figures that it does not print."""

    table: str
    name: str
    network: str  # a config below configs/, or timm:NAME, torchvision:NAME, mmdet:CONFIG
    params: str  # M; text, as the digits show how the paper rounds
    flops: str  # multiply-adds, G
    latency: float | None  # ms per image on one core of an AMD 73F3
    top1: float | None  # % on ImageNet-1k
    box_ap: float | None  # % on COCO
    box_ap50: float | None
    box_ap75: float | None
    mask_ap: float | None
    mask_ap50: float | None
    mask_ap75: float | None
    throughput: float | None  # images per second on a V100
    size: tuple[int, int]  # height and width of the images
    counted_params: float | None  # by this project, where the paper is known to be off
    counted_flops: float | None
    reason: str  # key of the reason


#: Columns that hold one number.
FLOATS = ('latency', 'top1', 'box_ap', 'box_ap50', 'box_ap75', 'mask_ap', 'mask_ap50', 'mask_ap75', 'throughput',
          'counted_params', 'counted_flops')


def read_figures(path: str | Path) -> list[Figure]:
    """Reads the rows of the file, in its order."""
    figures = []
    with open(path, newline='') as file:
        for row in csv.DictReader(file):
            for key in FLOATS:
                row[key] = float(row[key]) if row[key] else None
            height, width = map(int, row['size'].split('x'))
            figures.append(Figure(**{**row, 'size': (height, width)}))
    return figures
