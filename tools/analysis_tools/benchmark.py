# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Times PartialNet and its peers on this machine: latency of one image, or throughput of a batch.

All batch norms are merged in all networks. The networks run in turns, round by round, so that what slows the machine
slows all of them; times are medians and quartiles of the rounds, ratios are medians of the ratios of the rounds.
"""
import argparse
import csv
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from benchmark_modes import AMP, MODES, check_amp, check_modes, passes_in, prepare
from benchmark_paper import printed_for, printed_rows
from benchmark_picture import Point, draw
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from partialnet_mm.analysis.machine import describe_machine
from partialnet_mm.analysis.peers import MergedNorms, build_network, check_name, merge_network
from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns

ARCHS = ('t0', 't1', 't2', 's', 'm', 'l')
NETWORKS = [f'{family}_{arch}' for arch in ARCHS for family in ('partialnet', 'fasternet')]
#: Beside those of the paper's tables.
MORE_PEERS = ('efficientnet_b2', 'ghostnet_100', 'mmpretrain:shufflenet-v2-1x_16xb64_in1k')
#: Modes that differ in the memory format alone.
KINDS = {'eager': ('eager', 'channels_last'), 'torch.compile': ('compile', 'compile_channels_last')}
PICTURES = ('.png', '.svg', '.pdf')

#: Seconds of one pass by network and mode, in the order of the rounds.
Times = dict[tuple[str, str], list[float]]
Size = tuple[int, int]


class Network(NamedTuple):
    """A network that is ready to be timed."""

    model: nn.Module
    images: Tensor
    norms: MergedNorms


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', default=NETWORKS,
                        help='partialnet_ARCH, a name of timm, torchvision:NAME or mmpretrain:NAME (default: the six '
                        'variants, and FasterNet in the same six sizes)')
    parser.add_argument('--peers', nargs='+', default=[], metavar='NAME',
                        help="further networks; 'all' for every one of the paper's tables")
    parser.add_argument('--reference', metavar='NAME',
                        help="network that all are compared with (default: each PartialNet with timm's FasterNet of "
                        'its size)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=1, help='threads on the CPU (default: 1)')
    parser.add_argument('--batch', type=int, default=1, help='images a pass (default: 1)')
    parser.add_argument('--size', nargs='+', default=['224'], metavar='N',
                        help="height and width of the images, one number or two (default: 224), or 'paper' for those "
                        "that each network has in the paper's tables, 224 where it is in none")
    parser.add_argument('--modes', nargs='+', choices=list(MODES), default=['eager', 'channels_last'],
                        help='ways to run, each network in each; compile is torch.compile with frozen weights, which '
                        'takes up to minutes a network (default: eager channels_last)')
    parser.add_argument('--amp', choices=list(AMP), help='autocast to that type (default: float32)')
    parser.add_argument('--rounds', type=int, default=21, help='timed turns of each network (default: 21)')
    parser.add_argument('--turn', type=float, default=0.1, metavar='SECONDS',
                        help='a turn is as many passes as take so long, at least one (default: 0.1)')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='also write all figures there')
    parser.add_argument('--picture', type=Path, metavar='FILE',
                        help="also draw the paper's accuracy over the measured speed, .png, .svg or .pdf")
    return parser, parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Raises a ValueError for what would otherwise go wrong after minutes; completes the list of networks."""
    for name in ('threads', 'batch', 'rounds'):
        if getattr(args, name) < 1:
            raise ValueError(f'--{name} must be at least 1, got {getattr(args, name)}')
    if args.turn < 0:
        raise ValueError(f'--turn must not be negative, got {args.turn}')
    if args.size != ['paper'] and (len(args.size) > 2 or not all(n.isdigit() and int(n) for n in args.size)):
        raise ValueError(f"--size takes one or two positive numbers, or 'paper', got {' '.join(args.size)}")
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: torch sees no GPU')
    for option, path in (('csv', args.csv), ('picture', args.picture)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f'--{option}: the folder of {str(path)!r} does not exist')
    if args.picture is not None and args.picture.suffix not in PICTURES:
        raise ValueError(f'--picture must end in {", ".join(PICTURES)}, got {str(args.picture)!r}')
    peers = [name for peer in args.peers for name in ([*printed_rows(), *MORE_PEERS] if peer == 'all' else [peer])]
    args.networks = list(dict.fromkeys([*args.networks, *peers]))
    args.modes = list(dict.fromkeys(args.modes))
    if args.reference is not None and args.reference not in args.networks:
        raise ValueError(f'--reference {args.reference!r} is not one of the networks: {", ".join(args.networks)}')
    for name in args.networks:
        check_name(name)
    check_modes(args.modes, args.device)
    check_amp(args.amp, args.device)


def size_of(name: str, args: argparse.Namespace) -> Size:
    if args.size == ['paper']:
        rows = printed_rows().get(name)
        return rows[0].size if rows else (224, 224)
    height, width = (args.size * 2)[:2]
    return int(height), int(width)


def load(name: str, args: argparse.Namespace) -> Network:
    """Builds a network and merges its norms; raises a ValueError where it does not take images of the size."""
    size = size_of(name, args)
    torch.manual_seed(0)
    model = build_network(name)
    try:
        norms = merge_network(model, size)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:  # libraries differ in what they raise
        raise ValueError(f'network {name!r} does not run on images of {size[0]} x {size[1]}: {error}') from error
    return Network(model.to(args.device), torch.randn(args.batch, 3, *size, device=args.device), norms)


def measure(networks: dict[str, Network], args: argparse.Namespace) -> Times:
    """Prepares each network for each mode, which may compile it, and times all of them in turns."""
    console = Console(stderr=True)
    passes: dict[tuple[str, str], Callable[[], Tensor]] = {}
    wanted = [(name, mode) for mode in args.modes for name in networks]
    for name, mode in track(wanted, description='preparing and compiling', console=console):
        try:
            passes[name, mode] = prepare(networks[name].model, networks[name].images, mode, args.amp)
        except Exception as error:  # any, from the compiler: what it cannot do must not cost the rest
            console.print(f'{name} is left out of {mode}: {type(error).__name__}: {error}', style='yellow',
                          markup=False)
    counts = {key: passes_in(forward, args.turn) for key, forward in passes.items()}
    turns = {key: (lambda key=key: [passes[key]() for _ in range(counts[key])]) for key in passes}
    times: Times = {key: [] for key in turns}
    for turn in track(range(args.rounds), description='timing in turns', console=console):
        for key, seconds in time_in_turns(turns, rounds=1, warmup=int(turn == 0)).items():
            times[key] += [second / counts[key] for second in seconds]
    return times


def reference_of(name: str, args: argparse.Namespace) -> str | None:
    """What a network is compared with; None for nothing."""
    reference = args.reference
    if reference is None and name.startswith('partialnet_'):
        reference = name.partition('-')[0].replace('partialnet', 'fasternet')
    return reference if reference in args.networks and reference != name else None


def best_mode(times: Times, name: str, kind: str) -> str | None:
    """The fastest of a kind's memory formats for a network; None where it was run in neither."""
    run = [mode for mode in KINDS[kind] if (name, mode) in times]
    return min(run, key=lambda mode: statistics.median(times[name, mode]), default=None)


def rows_of(times: Times, networks: dict[str, Network], args: argparse.Namespace) -> list[dict]:
    """A row for each network and mode, as the CSV file has it."""
    rows = []
    for (name, mode), seconds in times.items():
        height, width = size_of(name, args)
        # the quartiles of the seconds are those of their ratios to one second
        spread = ratio_in_turns({'seconds': seconds, 'one': [1.] * len(seconds)}, 'seconds', 'one')
        reference = reference_of(name, args)
        compared = (reference, mode) in times
        ratio = ratio_in_turns(times, (name, mode), (reference, mode)) if compared else {}
        printed = printed_for(name, (height, width))
        rows.append(dict(
            network=name, mode=mode, height=height, width=width, batch=args.batch, amp=args.amp or 'float32',
            ms=1e3 * spread['median'], ms_low=1e3 * spread['low'], ms_high=1e3 * spread['high'],
            images_per_second=args.batch / spread['median'], reference=reference if compared else None,
            ratio=ratio.get('median'), ratio_low=ratio.get('low'), ratio_high=ratio.get('high'),
            norms_merged=networks[name].norms.merged, norms_left=networks[name].norms.left, rounds=args.rounds,
            paper_top1=printed.top1 if printed else None, machine=describe_machine(args.device)))
    return rows


def spread_text(row: dict, key: str, digits: int) -> str:
    if row[key] is None:
        return ''
    return f'{row[key]:.{digits}f} ({row[f"{key}_low"]:.{digits}f}-{row[f"{key}_high"]:.{digits}f})'


def print_modes(rows: Sequence[dict]) -> None:
    print('| network | images | mode | ms a pass (quartiles) | images/s | time over | ratio (quartiles) | norms '
          'merged, left |\n|---|---|---|---|---|---|---|---|')
    for row in rows:
        print(f'| {row["network"]} | {row["batch"]} x {row["height"]} x {row["width"]} | {row["mode"]} | '
              f'{spread_text(row, "ms", 2)} | {row["images_per_second"]:.1f} | {row["reference"] or ""} | '
              f'{spread_text(row, "ratio", 3)} | {row["norms_merged"]}, {row["norms_left"]} |')


def print_best(times: Times, args: argparse.Namespace) -> None:
    """Each network in its best memory format, over its reference in the reference's own best one."""
    kinds = [kind for kind in KINDS if any(mode in args.modes for mode in KINDS[kind])]
    columns = ' | '.join(f'{kind}: format | ms a pass | over the reference (quartiles)' for kind in kinds)
    print(f'\n| network | {columns} | paper, CPU |\n|---|{"---|---|---|" * len(kinds)}---|')
    for name in args.networks:
        reference = reference_of(name, args)
        cells = []
        for kind in kinds:
            mode, other = (best_mode(times, network, kind) for network in (name, reference))
            if mode is None:
                cells += ['', '', '']
                continue
            ratio = ratio_in_turns(times, (name, mode), (reference, other)) if other else None
            cells += ['channels_last' if 'channels_last' in mode else 'contiguous',
                      f'{1e3 * statistics.median(times[name, mode]):.2f}',
                      f'{ratio["median"]:.3f} ({ratio["low"]:.3f}-{ratio["high"]:.3f})' if ratio else '']
        printed, base = (printed_for(network, size_of(network, args)) if network else None
                         for network in (name, reference))
        cells.append(f'{printed.latency / base.latency:.2f}' if printed and base else '')
        print(f'| {name} | {" | ".join(cells)} |')


def draw_picture(times: Times, kind: str, args: argparse.Namespace) -> None:
    points = []
    for name in args.networks:
        printed, mode = printed_for(name, size_of(name, args)), best_mode(times, name, kind)
        if printed and mode:
            seconds = statistics.median(times[name, mode])
            points.append(Point(printed.name, printed.top1, args.batch / seconds if args.batch > 1 else 1e3 * seconds))
    label = 'throughput (images/s)' if args.batch > 1 else 'latency of one image (ms)'
    title = (f'{describe_machine(args.device)}, {kind}, best memory format of each, batch {args.batch}, '
             f'{args.amp or "float32"}')
    draw(points, label, title, args.picture)


def main() -> None:
    parser, args = parse_args()
    torch.set_num_threads(max(args.threads, 1))
    torch.backends.cudnn.benchmark = True
    console = Console(stderr=True)
    try:
        check(args)
        networks = {name: load(name, args) for name in
                    track(args.networks, description='building', console=console)}
    except ValueError as error:
        parser.error(str(error))
    kind = next(kind for kind in KINDS if any(mode in args.modes for mode in KINDS[kind]))
    if args.picture and not any(printed_for(name, size_of(name, args)) for name in networks):
        parser.error('--picture: the paper prints no accuracy of these networks at this size; --size paper takes its '
                     'sizes')

    times = measure(networks, args)
    if not times:
        parser.exit(1, 'no network could be run in any of the modes\n')
    rows = rows_of(times, networks, args)
    if args.csv:
        with args.csv.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(f'{describe_machine(args.device)}, {args.amp or "float32"}, {args.rounds} rounds in turns\n')
    print_modes(rows)
    print_best(times, args)
    if args.picture:
        draw_picture(times, kind, args)


if __name__ == '__main__':
    main()
