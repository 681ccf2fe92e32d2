# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What the paper's tables of classifiers print for the networks that can be timed."""
from typing import NamedTuple

from paper_tables import FIGURES, Figure

#: Top-1 on ImageNet-1k (%), as Tables 1 and 10 print it, by the name that paper_tables.py has.
TOP1 = {
    'PartialNet-T0': 73.9, 'PartialNet-T1': 78.1, 'PartialNet-T2': 80.2, 'PartialNet-S': 82.1, 'PartialNet-M': 83.1,
    'PartialNet-L': 83.9,
    'FasterNet-T0': 71.9, 'FasterNet-T1': 76.2, 'FasterNet-T2': 78.9, 'FasterNet-S': 81.3, 'FasterNet-M': 83.0,
    'FasterNet-L': 83.5,
    'ShuffleNetV2 x1.5': 72.6, 'ShuffleNetV2 x2': 74.9, 'MobileNetV2': 72.0, 'MobileNetV2 x1.4': 74.7,
    'MobileViT-XXS': 69.0, 'MobileViT-XS': 74.8, 'MobileViT-S': 78.4,
    'MobileViTv2-0.5': 70.2, 'MobileViTv2-1.0': 78.1, 'MobileViTv2-1.5': 80.4, 'MobileViTv2-2.0': 81.2,
    'GhostNet x1.3': 75.7,
    'EfficientNet-B0': 77.1, 'EfficientNet-B1': 79.1, 'EfficientNet-B3': 81.6, 'EfficientNet-B4': 82.9,
    'EfficientNet-B5': 83.6,
    'EfficientViT-B1': 79.4, 'EfficientViT-B1-192': 77.7, 'ResNet-50': 78.8,
    'PoolFormer-S12': 77.2, 'PoolFormer-S36': 81.4, 'PoolFormer-M36': 82.1, 'PoolFormer-M48': 82.5,
    'Swin-T': 81.3, 'Swin-S': 83.0, 'Swin-B': 83.5, 'ConvNeXt-T': 82.1, 'ConvNeXt-S': 83.1, 'ConvNeXt-B': 83.8,
}


class Printed(NamedTuple):
    """A row of the paper: its name, top-1 (%), CPU latency (ms, AMD 73F3, one core, batch 1), size of the images."""

    name: str
    top1: float
    latency: float
    size: tuple[int, int]


def printed_rows() -> dict[str, list[Printed]]:
    """The paper's rows by the name that benchmark.py has for the network; one network may have several sizes."""
    rows = {}
    for figure in FIGURES:
        if figure.table in ('1', '10'):
            row = Printed(figure.name, TOP1[figure.name], figure.latency, figure.size)
            rows.setdefault(_network(figure), []).append(row)
    return rows


def printed_for(network: str, size: tuple[int, int]) -> Printed | None:
    """The paper's row of a network with images of a size; None where it has none."""
    return next((row for row in printed_rows().get(network, []) if row.size == tuple(size)), None)


def _network(figure: Figure) -> str:
    if figure.network.startswith('pretrain/'):
        return figure.network[len('pretrain/'):-len('_in1k.py')]
    return figure.network[len('timm:'):] if figure.network.startswith('timm:') else figure.network
