# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Counts the networks of the paper's tables and compares them with what it prints.

A figure is "equal" when it is within 1 % of the paper's or rounds to it. It is "explained" when it differs for a
recorded reason and equals the count that was recorded with it. Otherwise it is "OFF", and the exit status is 1.
"""
import argparse
import importlib
import json
import math
import statistics
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table
from torch import nn

from partialnet_mm.analysis.commands import positive
from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.analysis.measure import markdown_table, progress, ratio, time_in_rounds
from partialnet_mm.analysis.paper import Figure, read_figures
from partialnet_mm.analysis.peers import build_config, build_network, find_config, merge_network
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import PartialNet

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FIGURES = Path(__file__).with_name('figures.csv')
#: Network whose time the times of --latency are compared with.
REFERENCE = 'FasterNet-T2'
HEAD = '''# The paper's figures, counted

Parameters as trained, and multiply-adds (the paper's "FLOPs") of the merged form at the input size of each network, of
every table that can be counted. "equal" is within 1 % of the paper or rounds to what it prints; "explained" differs for
the reason given below. This page is what `python tools/paper/verify_paper.py --format markdown` prints, and a test
keeps the two in step.
'''
_HEADS = ('the paper does not name its counter; it gives 4 to 7 G less than this one for every Mask R-CNN, whatever '
          'the backbone')
_BACKBONE = (f'{_HEADS}; the further 8, 13 and 19 G for S, M and L are what the products of attention over 1000 '
             'positions and its qkv layer have, 8.6, 13.2 and 18.7 G, which many counters do not see')
#: By the keys in figures.csv.
REASONS = {
    'appendix': 'the appendix prints the blocks 1, 2, 8, 2 of FasterNet; 1, 2, 6, 4 gives the printed sizes, and '
                "arch='t0' and 't1' have those",
    'own': "the paper quotes the network's own publication, which rounds or counts otherwise",
    'heads': _HEADS,
    'backbone': _BACKBONE,
    'pvt': f"{_HEADS}; the other 59.4, 90.1 and 129.5 G are the products of PVT's attention, which many counters do "
           'not see',
    'misprint': '78.2 M is a misprint: the classifier has 61.3 M, and S and L leave 17.6 to 18.0 M for the rest; '
                f'{_BACKBONE}',
    'next_row': "11.1 M is the next row's: without the gates there are 9.41 M",
    'norms': 'norms, which the paper counts at two operations per element, are left out here',
    'widening': 'the paper does not say how far it is widened',
}


def _fasternet(embed_dim: int, depths: tuple[int, ...]) -> dict:
    return {'model.backbone.arch.embed_dim': embed_dim, 'model.backbone.arch.depths': depths,
            'model.neck.in_channels': [embed_dim * 2**i for i in range(4)]}


def _pyramid(**backbone: object) -> dict:
    """A backbone of PVT's and PoolFormer's widths."""
    return {'model.backbone': dict(_delete_=True, **backbone), 'model.neck.in_channels': [64, 128, 320, 512]}


#: Images of ImageNet-1k's training split.
IMAGENET_IMAGES = 1_281_167
#: Changes to the config of a row.
OPTIONS = {
    'Mask R-CNN, FasterNet-M': _fasternet(144, (3, 4, 18, 3)),
    'Mask R-CNN, FasterNet-L': _fasternet(192, (3, 4, 18, 3)),
    # Depths as in mmdet's retinanet_pvt-{s,m,l}_fpn_1x_coco.py, which ships no Mask R-CNN with PVT.
    'Mask R-CNN, PVT-Small x1.5': _pyramid(type='PyramidVisionTransformer', num_layers=[3, 4, 6, 3]),
    'Mask R-CNN, PVT-Medium': _pyramid(type='PyramidVisionTransformer', num_layers=[3, 4, 18, 3]),
    'Mask R-CNN, PVT-Large': _pyramid(type='PyramidVisionTransformer', num_layers=[3, 8, 27, 3]),
    'Mask R-CNN, PoolFormer-S24': _pyramid(type='mmpretrain.PoolFormer', arch='s24', out_indices=(0, 2, 4, 6)),
    'Mask R-CNN, PoolFormer-S36': _pyramid(type='mmpretrain.PoolFormer', arch='s36', out_indices=(0, 2, 4, 6)),
    'PartialNet-T0 as printed': {'model.backbone.arch': 't0-appendix'},
    'PartialNet-T1 as printed': {'model.backbone.arch': 't1-appendix'},
}


def build(figure: Figure) -> nn.Module:
    """The network of a row in evaluation mode, on the device of the context."""
    if not figure.network.endswith('.py'):
        return build_network(figure.network)
    cfg = Config.fromfile(find_config(figure.network if ':' in figure.network else str(CONFIGS / figure.network)))
    cfg.merge_from_dict(OPTIONS.get(figure.name, {}))
    cfg.model.backbone.init_cfg = None
    if '.' in cfg.model.backbone.type:  # of a library that registers its networks when it is imported
        importlib.import_module(f'{cfg.model.backbone.type.partition(".")[0]}.models')
    return build_config(cfg)


def verdict(printed: str, measured: float, recorded: float | None) -> str:
    """'equal', 'explained' or 'OFF'."""
    half_digit = float(Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)) / 2
    if abs(measured - float(printed)) <= max(0.01 * float(printed), half_digit):
        return 'equal'
    return 'explained' if recorded is not None and abs(measured - recorded) <= 0.01 * recorded else 'OFF'


def compare(figure: Figure) -> dict:
    """The counts of a row beside the paper's."""
    # Shapes are enough to count, except where operators of mmcv run or values are read.
    computes = figure.network.partition('/')[0].endswith('mask_rcnn') or 'efficientvit' in figure.network
    with torch.device('cpu' if computes else 'meta'):
        model = build(figure)
    params = sum(p.numel() for p in model.parameters()) / 1e6
    for module in list(model.modules()):
        if isinstance(module, PartialNet):
            module.switch_to_deploy()
    flops = count_multiply_adds(model, (1, 3, *figure.size)) / 1e9
    verdicts = [verdict(printed, measured, recorded if figure.reason else None) for printed, measured, recorded in (
        (figure.params, params, figure.counted_params), (figure.flops, flops, figure.counted_flops))]
    worst = max(verdicts, key=['equal', 'explained', 'OFF'].index)
    return dict(
        table=figure.table, name=figure.name, network=figure.network, paper_params=figure.params,
        params=round(params, 3), paper_flops=figure.flops, flops=round(flops, 3), verdict=worst,
        reason=REASONS[figure.reason] if worst == 'explained' else '')


def runner(figure: Figure) -> Callable[[], object]:
    """One forward pass of one image, norms merged."""
    model = build(figure)
    merge_network(model, figure.size)
    image = torch.randn(1, 3, *figure.size)
    return lambda: model(image)


def add_latency(rows: list[dict], figures: list[Figure], reference: Figure, rounds: int) -> None:
    """Adds times, and their ratio to the reference's in alternating rounds."""
    with torch.inference_mode():
        run_reference = runner(reference)
        for row, figure in zip(rows, figures):
            if figure.latency is None:
                continue
            times = time_in_rounds({'network': runner(figure), 'reference': run_reference}, rounds, warmup=2)
            row.update(latency_ms=round(1e3 * statistics.median(times['network']), 2),
                       latency_ratio=round(ratio(times, 'network', 'reference').median, 3),
                       paper_latency_ratio=round(figure.latency / reference.latency, 3))


def contradictions(figures: list[Figure]) -> str:
    """Where the paper contradicts itself or the official code, beside what the rows of this page show."""
    by_name = {(figure.table, figure.name): figure for figure in figures}
    ours, theirs = by_name['1', 'PartialNet-T2'].latency, by_name['1', 'FasterNet-T2'].latency
    passes = {}
    for arch in ('t0', 'm'):
        cfg = Config.fromfile(CONFIGS / 'pretrain' / f'partialnet_{arch}_in1k.py')
        batch = cfg.auto_scale_lr.base_batch_size
        passes[batch] = math.ceil(IMAGENET_IMAGES / batch) * cfg.train_cfg.max_epochs / 1e3
    small, large = passes
    params = {}
    for gate in ('gaussian', 'self'):
        cfg = Config.fromfile(CONFIGS / by_name['5', 'ConvNeXt-T, PATConv'].network)
        cfg.model.backbone.patconv_cfg = [dict(), dict(), dict(), dict(gate=gate)]
        params[gate] = sum(p.numel() for p in build_config(cfg).parameters()) / 1e6
    lines = [
        f'Table 8 prints 188k forward passes for all variants. {IMAGENET_IMAGES} images in batches of {large} are '
        f'{passes[large]:.1f}k in 300 epochs, which is right for M and L. T0 to S have a batch of {small}: '
        f'{passes[small]:.1f}k.',
        f'Sec. 4.1 says that PartialNet-T2 has a 24.1 % lower CPU latency than FasterNet-T2. Table 1 prints {ours} and '
        f'{theirs} ms: PartialNet-T2 is {100 - 100 * ours / theirs:.1f} % lower. FasterNet-T2 is '
        f'{100 * theirs / ours - 100:.1f} % higher.',
        'Tables 2 and 11 name a "PVT-Small x1.5". Its parameters and FLOPs are those of PVT-Small.',
        f"Table 5 prints a top-1 of 76.00 for ConvNeXt-T, Table 10 {by_name['10', 'ConvNeXt-T'].top1}. Table 5 calls "
        'its networks reproduced; its recipe is not stated.',
        f'Sec. 4.3 and Figure 2 of the appendix put PAT_ch into ConvNeXt-T, which has {params["gaussian"]:.1f} M '
        f"parameters then. The official code has self-attention in stage 4 (`gate='self'`): {params['self']:.1f} M.",
    ]
    return '\n## Contradictions\n\n' + ''.join(f'- {line}\n' for line in lines)


def columns(rows: list[dict]) -> dict[str, str]:
    """Headings of a row's values by their keys."""
    names = dict(table='table', name='network', paper_params='Params (M), paper', params='counted',
                 paper_flops='FLOPs (G), paper', flops='counted', verdict='verdict')
    if any('latency_ms' in row for row in rows):
        names.update(paper_latency_ratio=f'time / {REFERENCE}, paper', latency_ratio='measured', latency_ms='ms')
    return names


def cells(row: dict, names: dict[str, str]) -> list[str]:
    values = {key: row.get(key, '') for key in names}
    return [f'{value:.2f}' if key in ('params', 'flops') and value >= 2 else str(value)
            for key, value in values.items()]


def as_markdown(rows: list[dict]) -> str:
    names = columns(rows)
    reasons = list(dict.fromkeys(row['reason'] for row in rows if row['reason']))
    lines = [cells({**row, 'verdict': f'{row["verdict"]} ({reasons.index(row["reason"]) + 1})'} if row['reason']
                   else row, names) for row in rows]
    notes = ''.join(f'{number}. {reason}.\n' for number, reason in enumerate(reasons, 1))
    return f'{HEAD}\n{markdown_table(list(names.values()), lines)}\n\n{notes}'


def as_table(rows: list[dict], width: int | None) -> str:
    """The table for a terminal, with the reasons below."""
    names = columns(rows)
    table = Table(*names.values())
    for row in rows:
        table.add_row(*cells(row, names), style=dict(equal='', explained='yellow', OFF='bold red')[row['verdict']])
    console = Console(record=True, width=width, quiet=width is not None)
    console.print(table)
    for reason in dict.fromkeys(row['reason'] for row in rows if row['reason']):
        networks = ', '.join(f'{row["name"]} ({row["table"]})' for row in rows if row['reason'] == reason)
        console.print(f'{networks}: {reason}', style='yellow')
    return console.export_text()


@command
def main() -> None:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tables', nargs='+', metavar='N',
                        help="the paper's tables (default: all that can be counted)")
    parser.add_argument('--format', choices=['table', 'json', 'markdown'], default='table')
    parser.add_argument('--out', type=Path, help='file to write instead of printing')
    parser.add_argument('--latency', action='store_true', help='also time each network on the CPU, one thread, batch '
                        f'1, in alternating rounds with {REFERENCE}')
    parser.add_argument('--rounds', type=positive, default=15, help='timed passes of each network (default: 15)')
    parser.add_argument('--figures', type=Path, default=FIGURES, help='rows to count, as in figures.csv')
    args = parser.parse_args()
    figures = [figure for figure in read_figures(args.figures) if figure.params]
    tables = sorted({figure.table for figure in figures}, key=int)
    if args.tables and not set(args.tables) <= set(tables):
        parser.error(f'--tables must be of {", ".join(tables)}, got {" ".join(args.tables)}')
    figures = [figure for figure in figures if figure.table in (args.tables or tables)]
    rows = [compare(figure) for figure in progress(figures, 'counting')]
    if args.latency:
        torch.set_num_threads(1)
        reference = next(figure for figure in read_figures(FIGURES) if figure.name == REFERENCE)
        add_latency(rows, figures, reference, args.rounds)
    if args.format == 'table':
        result = as_table(rows, 140 if args.out else None)
    else:
        result = json.dumps(rows, indent=1) + '\n' if args.format == 'json' else as_markdown(rows)
        if args.format == 'markdown' and not args.tables:
            result += contradictions(read_figures(FIGURES))
    if args.out:
        args.out.write_text(result)
    elif args.format != 'table':
        print(result, end='')
    if any(row['verdict'] == 'OFF' for row in rows):
        parser.exit(1, 'A figure differs by more than 1 % without a recorded reason.\n')


if __name__ == '__main__':
    main()
