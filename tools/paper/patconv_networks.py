# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Prints Table 5 of the paper as Markdown: networks with their own spatial convolutions and with PATConv.

Parameters and multiply-adds are counted. --latency times both in alternating rounds, their norms merged.
"""
import argparse
import statistics
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from partialnet_mm.analysis.commands import add_machine_arguments, positive
from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.analysis.measure import describe_machine, markdown_table, ratio, time_in_rounds
from partialnet_mm.analysis.norm_folding import fold_batch_norms
from partialnet_mm.analysis.paper import read_figures
from partialnet_mm.analysis.peers import build_config, build_network
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import merge_following_norms, merge_model

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
#: By name: the rows of the original and of PATConv.
ROWS = {figure.name: figure for figure in read_figures(Path(__file__).with_name('figures.csv')) if figure.table == '5'}
NETWORKS = [name for name in ROWS if f'{name}, PATConv' in ROWS]
CONVS = ('dense', 'depthwise')


def parse_args() -> argparse.Namespace:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=NETWORKS)
    parser.add_argument('--conv', nargs='+', choices=CONVS, default=list(CONVS),
                        help="convolved channels of PATConv; 'dense' is the paper's (default: both)")
    parser.add_argument('--latency', action='store_true', help='time the networks')
    parser.add_argument('--batch', type=positive, default=1, help='images per pass (default: 1)')
    parser.add_argument('--size', type=positive, default=224, help='height and width of the images (default: 224)')
    add_machine_arguments(parser, rounds=21, threads=1)
    return parser.parse_args()


def build(network: str, conv: str | None = None) -> nn.Module:
    """A network with random weights: with PATConv of a kind, or the original."""
    if conv is None:
        return build_network(ROWS[network].network)
    cfg = Config.fromfile(CONFIGS / ROWS[f'{network}, PATConv'].network)
    backbone = cfg.model.backbone
    if backbone.type == 'PATConvNeXt':
        backbone.patconv_cfg = dict(conv=conv)
    else:
        backbone.conv_cfg.conv = conv
    return build_config(cfg)


def count(model: nn.Module, merged: bool, size: int) -> tuple[float, float]:
    """Parameters (M) as trained, multiply-adds (G)."""
    params = sum(p.numel() for p in model.parameters()) / 1e6
    if merged:
        merge_model(model)
    # On the device 'meta' nothing is computed and all is counted.
    return params, count_multiply_adds(model.to('meta'), (1, 3, size, size)) / 1e9


def print_counts(args: argparse.Namespace) -> None:
    rows = []
    for network in args.networks:
        params, counts = count(build(network), False, args.size)
        for conv in args.conv:
            own_params, own_counts = count(build(network, conv), True, args.size)
            rows.append([network, conv, f'{params:.2f}', f'{own_params:.2f}', f'{counts:.3f}', f'{own_counts:.3f}',
                         f'{counts / own_counts:.2f}'])
    print(markdown_table(['network', 'convolved part', 'Params (M)', 'with PATConv',
                          f'multiply-adds (G), {args.size} x {args.size}', 'with PATConv', 'ratio'], rows))


def print_times(args: argparse.Namespace) -> None:
    rows = []
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    for network in args.networks:
        models = {conv: build(network, conv) for conv in (None, *args.conv)}
        for conv, model in models.items():
            if conv:
                merge_model(model)
                merge_following_norms(model)
            fold_batch_norms(model, lambda model=model: model(torch.randn(1, *images.shape[1:])))
            model.to(args.device)
        passes = {conv: (lambda model=model: model(images)) for conv, model in models.items()}
        with torch.inference_mode():
            times = time_in_rounds(passes, args.rounds, warmup=3)
        speed = {conv: f'{args.batch / statistics.median(seconds):.1f}' for conv, seconds in times.items()}
        before, after = (figure.throughput for figure in (ROWS[network], ROWS[f'{network}, PATConv']))
        rows += [[network, conv, speed[None], speed[conv], ratio(times, None, conv).text(), f'{after / before:.2f}']
                 for conv in args.conv]
    print(markdown_table(['network', 'convolved part', 'original (images/s)', 'with PATConv', 'ratio (quartiles)',
                          'paper, V100'], rows))


@command
def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print_counts(args)
    if args.latency:
        print(f'\n{describe_machine(args.device)}, batch {args.batch}, {args.rounds} alternating rounds, norms '
              'merged\n')
        print_times(args)


if __name__ == '__main__':
    main()
