# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Counts the networks of the paper's tables and compares them with what it prints.

A figure is "equal" when it is within 1 % of the paper's or rounds to it, "explained" when it differs for a reason that
is recorded here and is what was counted when it was recorded, and "OFF" otherwise: the exit status is then 1.
"""
import argparse
import importlib.util
import json
import statistics
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import torch
from get_flops import forward_detector
from mmengine.config import Config
from paper_tables import COCO, FIGURES, Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.flops import count_multiply_adds, multiply_adds_by_layer
from partialnet_mm.analysis.peers import merge_network
from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns
from partialnet_mm.models import PartialNet

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
REFERENCE = 'FasterNet-T2'
HEAD = '''# The paper's figures, counted

Parameters as trained, and multiply-adds (the paper's "FLOPs") of the merged form at the input size of each network, of
every table that can be counted. "equal" is within 1 % of the paper or rounds to what it prints; "explained" differs for
the reason given below. This page is what `python tools/analysis_tools/verify_paper.py --format markdown` prints, and a
test keeps the two in step.
'''


def find_config(figure: Figure) -> Path:
    package, _, name = figure.network.rpartition(':')
    if not package:
        return CONFIGS / name
    return Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'configs' / name


def build(figure: Figure) -> nn.Module:
    """The network of a row in evaluation mode, on the device of the context."""
    library, _, name = figure.network.rpartition(':')
    if library == 'timm':
        import timm
        return timm.create_model(name).eval()
    if library == 'torchvision':
        import torchvision
        return getattr(torchvision.models, name)().eval()
    cfg = Config.fromfile(find_config(figure))
    for key, value in figure.options.items():
        *owners, last = key.split('.')
        owner = cfg
        for name in owners:
            owner = owner[name]
        owner[last] = value
    cfg.model.backbone.init_cfg = None
    if cfg.default_scope == 'mmpretrain':
        cfg.model.train_cfg = None  # batch augmentation is for training
    return build_model(cfg).eval()


def count(figure: Figure) -> tuple[float, float]:
    """Parameters (M) as trained and multiply-adds (G) merged: that is what the paper prints."""
    # Shapes are enough to count; what runs operators of mmcv or looks at values must really compute.
    computes = figure.size == COCO or 'efficientvit' in figure.network
    with torch.device('cpu' if computes else 'meta'):
        model = build(figure)
    params = sum(p.numel() for p in model.parameters()) / 1e6
    merge(model)
    shape = (1, 3, *figure.size)
    if hasattr(model, 'roi_head'):
        flops = sum(multiply_adds_by_layer(model, lambda: forward_detector(model, torch.zeros(shape))).values())
    else:
        flops = count_multiply_adds(model, shape)
    return params, flops / 1e9


def merge(model: nn.Module) -> None:
    if isinstance(getattr(model, 'backbone', None), PartialNet):
        model.backbone.switch_to_deploy()


def verdict(printed: str | None, measured: float, recorded: float | None, reason: str) -> str:
    """'equal', 'explained', or 'OFF'; '' where the paper prints nothing."""
    if printed is None:
        return ''
    half_digit = float(Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)) / 2
    paper = float(printed)
    if abs(measured - paper) <= max(0.01 * paper, half_digit):
        return 'equal'
    if reason and recorded is not None and abs(measured - recorded) <= 0.01 * recorded:
        return 'explained'
    return 'OFF'


def compare(figure: Figure) -> dict:
    """A row of the result."""
    params, flops = count(figure)
    verdicts = [verdict(printed, measured, recorded, figure.reason) for printed, measured, recorded in
                zip((figure.params, figure.flops), (params, flops), figure.counted)]
    worst = max(verdicts, key=['', 'equal', 'explained', 'OFF'].index)
    return dict(
        table=figure.table, name=figure.name, network=figure.network, paper_params=figure.params,
        params=round(params, 3), paper_flops=figure.flops, flops=round(flops, 3), verdict=worst,
        reason=figure.reason if worst == 'explained' else '')


def runner(figure: Figure) -> Callable[[], object]:
    """One forward pass of one image, norms merged."""
    model = build(figure)
    merge_network(model, figure.size)
    image = torch.randn(1, 3, *figure.size)

    def run() -> None:
        with torch.inference_mode():
            model(image)

    return run


def add_latency(rows: list[dict], figures: list[Figure], rounds: int) -> None:
    """Adds measured times, and their ratio to the reference, in turns with it."""
    reference_figure = next(figure for figure in FIGURES if figure.name == REFERENCE)
    reference = runner(reference_figure)
    for row, figure in track(list(zip(rows, figures)), description='timing', console=Console(stderr=True)):
        if figure.latency is None:
            continue
        times = time_in_turns({figure.name: runner(figure), 'reference': reference}, rounds, warmup=2)
        ratio = ratio_in_turns(times, figure.name, 'reference')
        row.update(latency_ms=round(1e3 * statistics.median(times[figure.name]), 2),
                   latency_ratio=round(ratio['median'], 3),
                   paper_latency_ratio=round(figure.latency / reference_figure.latency, 3))


def columns(rows: list[dict]) -> dict[str, str]:
    """Keys of a row and what to call them."""
    names = dict(table='table', name='network', paper_params='Params (M), paper', params='counted',
                 paper_flops='FLOPs (G), paper', flops='counted ', verdict='verdict')
    if any('latency_ms' in row for row in rows):
        names.update(paper_latency_ratio=f'time / {REFERENCE}, paper', latency_ratio='measured', latency_ms='ms')
    return names


def text(row: dict, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ''
    return f'{value:.2f}' if key in ('params', 'flops') and value >= 2 else str(value)


def as_markdown(rows: list[dict]) -> str:
    names = columns(rows)
    lines = [HEAD, f'| {" | ".join(name.strip() for name in names.values())} |', '|---' * len(names) + '|']
    reasons: list[str] = []
    for row in rows:
        cells = [text(row, key) for key in names]
        if row['reason']:
            if row['reason'] not in reasons:
                reasons.append(row['reason'])
            cells[list(names).index('verdict')] += f' ({reasons.index(row["reason"]) + 1})'
        lines.append(f'| {" | ".join(cells)} |')
    lines.append('')
    lines += [f'{number}. {reason}.' for number, reason in enumerate(reasons, 1)]
    return '\n'.join(lines) + '\n'


def as_table(rows: list[dict]) -> Table:
    names = columns(rows)
    table = Table(*names.values())
    colors = dict(equal='', explained='yellow', OFF='bold red')
    for row in rows:
        table.add_row(*(text(row, key) for key in names), style=colors[row['verdict']])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = sorted({figure.table for figure in FIGURES}, key=int)
    parser.add_argument('--tables', nargs='+', choices=tables, default=tables, help="the paper's tables (default: all)")
    parser.add_argument('--format', choices=['table', 'json', 'markdown'], default='table')
    parser.add_argument('--out', type=Path, help='write there instead of to the terminal')
    parser.add_argument('--latency', action='store_true',
                        help=f'also time each network on the CPU, one thread, batch 1, in turns with {REFERENCE}')
    parser.add_argument('--rounds', type=int, default=15, help='timed passes of each network (default: 15)')
    args = parser.parse_args()

    figures = [figure for figure in FIGURES if figure.table in args.tables]
    rows = [compare(figure) for figure in track(figures, description='counting', console=Console(stderr=True))]
    if args.latency:
        torch.set_num_threads(1)
        add_latency(rows, figures, args.rounds)
    if args.format == 'table':
        console = Console(record=True, width=140 if args.out else None, quiet=bool(args.out))
        console.print(as_table(rows))
        for reason in dict.fromkeys(row['reason'] for row in rows if row['reason']):
            names = ', '.join(f'{row["name"]} ({row["table"]})' for row in rows if row['reason'] == reason)
            console.print(f'{names}: {reason}', style='yellow')
        result = console.export_text()
    else:
        result = json.dumps(rows, indent=1) + '\n' if args.format == 'json' else as_markdown(rows)
    if args.out:
        args.out.write_text(result)
    elif args.format != 'table':
        print(result, end='')
    if any(row['verdict'] == 'OFF' for row in rows):
        parser.exit(1, 'A figure differs by more than 1 % without a recorded reason.\n')


if __name__ == '__main__':
    main()
