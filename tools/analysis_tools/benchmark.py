# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Times PartialNet and its peers on this machine: latency of one image, or throughput of a batch.

All batch norms are merged in all networks. The networks run in alternating rounds, so that what slows the machine slows
all of them. Times are medians and quartiles of the rounds, ratios are medians and quartiles of the ratios of the
rounds. Detectors run without their post-processing. With --runtime onnxruntime or openvino, the networks are exported
for the size of the images and run there.
"""
import argparse
import copy
import csv
import itertools
import os
import re
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from partialnet_mm.analysis.commands import add_machine_arguments, output_file, picture, positive
from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.analysis.measure import (
    describe_machine,
    markdown_table,
    progress,
    ratio,
    spread,
    synchronize,
    time_in_rounds,
)
from partialnet_mm.analysis.paper import Figure, read_figures
from partialnet_mm.analysis.peers import MergedNorms, build_network, check_name, find_config, merge_network
from partialnet_mm.deploy.exported_form import exported_form
from partialnet_mm.deploy.runtimes import RUNTIMES, describe_runtime, in_runtime, require_runtime
from partialnet_mm.engine.runners.config_file import config_errors, read_config
from partialnet_mm.engine.runners.user_errors import ToolParser, command

NETWORKS = [f'{family}_{arch}' for arch in ('t0', 't1', 't2', 's', 'm', 'l') for family in ('partialnet', 'fasternet')]
#: Peers that the paper's tables do not have.
MORE_PEERS = ('efficientnet_b2', 'ghostnet_100', 'mmpretrain:shufflenet-v2-1x_16xb64_in1k')
AMP = {'bf16': torch.bfloat16, 'fp16': torch.float16}
#: Modes of torch that differ in the memory format, or the form of merged blocks; other runtimes choose by themselves.
TORCH_KINDS = {'eager': ('eager', 'channels_last'),
               'torch.compile': ('compile', 'compile_channels_last', 'compile_exported')}
#: What the tables call a mode of torch, by a part of its name.
FORMATS = dict(exported='exported form', channels_last='channels_last')
KINDS = {**TORCH_KINDS, **{mode: (mode, ) for mode in (*RUNTIMES, 'onnxruntime INT8')}}
MODES = [mode for kind in TORCH_KINDS.values() for mode in kind]
#: Of all families but PartialNet, which is red.
COLORS = ('#1f77b4', '#ff7f0e', '#2ca02c', '#9467bd', '#8c564b', '#e377c2', '#7f7f7f', '#bcbd22', '#17becf', '#000080',
          '#004d00', '#000000')

#: Seconds of one pass by network and mode, in the order of the rounds.
Times = dict[tuple[str, str], list[float]]


class Network(NamedTuple):
    """A network that is ready to be timed, and the row of the paper that it belongs to."""

    model: nn.Module
    images: Tensor
    norms: MergedNorms
    printed: Figure | None


def paper_rows() -> dict[str, list[Figure]]:
    """The paper's classifiers by their names here; one network may have several sizes of images."""
    rows: dict[str, list[Figure]] = {}
    for figure in read_figures(Path(__file__).resolve().parents[1] / 'paper' / 'figures.csv'):
        if figure.top1 is not None:
            name = figure.network.removeprefix('pretrain/').removesuffix('_in1k.py').removeprefix('timm:')
            rows.setdefault(name, []).append(figure)
    return rows


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', default=NETWORKS,
                        help='partialnet_ARCH, a name of timm, torchvision:NAME, mmpretrain:NAME, a config file, or '
                        'mmdet:CONFIG for one that a library ships (default: the six variants, and FasterNet in the '
                        'same six sizes)')
    parser.add_argument('--peers', nargs='+', default=[], metavar='NAME',
                        help="further networks; 'all' for every classifier of the paper's tables")
    parser.add_argument('--reference', metavar='NAME',
                        help="network that all are compared with (default: each PartialNet with timm's FasterNet of "
                        'its size)')
    parser.add_argument('--batch', type=positive, default=1, help='images per pass (default: 1)')
    parser.add_argument('--size', nargs='+', default=['224'], metavar='N',
                        help="height and width of the images, one number or two (default: 224), or 'paper' for those "
                        "that each network has in the paper's tables, 224 where it is in none")
    parser.add_argument('--runtime', choices=('torch', *RUNTIMES), default='torch',
                        help='what runs the networks (default: torch)')
    parser.add_argument('--int8', action='store_true',
                        help='with --runtime onnxruntime, quantize the networks by tools/deployment/quantize_onnx.py, '
                        'with ranges of random images')
    parser.add_argument('--modes', nargs='+', choices=MODES,
                        help='ways to run in torch, each network in each; compile is torch.compile with frozen '
                        'weights, which takes up to minutes per network, and compile_exported compiles PartialNet in '
                        'the form of exported files (default: eager channels_last)')
    parser.add_argument('--amp', choices=list(AMP), help='autocast to that type (default: float32)')
    parser.add_argument('--tf32', action='store_true',
                        help='on a GPU, compute products and convolutions of float32 in TF32 (default: neither; torch '
                        'by itself takes TF32 for convolutions only)')
    parser.add_argument('--turn', type=float, default=0.1, metavar='SECONDS',
                        help='a network runs for that long in each round, at least one pass (default: 0.1)')
    parser.add_argument('--csv', type=output_file, metavar='FILE', help='also write all figures there')
    parser.add_argument('--picture', type=picture, metavar='FILE',
                        help="also draw the paper's accuracy over the measured speed (its Figure 2)")
    parser.add_argument('--flops-picture', type=picture, metavar='FILE',
                        help="also draw the paper's accuracy over counted multiply-adds (its Figure 5)")
    add_machine_arguments(parser, rounds=21, threads=1)
    return parser, parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Raises a ValueError for what would otherwise fail after minutes; completes the list of networks."""
    if args.turn < 0:
        raise ValueError(f'--turn must not be negative, got {args.turn}')
    if args.size != ['paper'] and (len(args.size) > 2 or not all(n.isdigit() and int(n) for n in args.size)):
        raise ValueError(f"--size takes one or two positive numbers, or 'paper', got {' '.join(args.size)}")
    peers = [name for peer in args.peers for name in ([*paper_rows(), *MORE_PEERS] if peer == 'all' else [peer])]
    args.networks = list(dict.fromkeys([*args.networks, *peers]))
    if args.runtime == 'torch':
        args.modes = list(dict.fromkeys(args.modes or ['eager', 'channels_last']))
    else:
        check_runtime(args)
        args.modes = [f'{args.runtime} INT8' if args.int8 else args.runtime]
    if args.int8 and args.runtime != 'onnxruntime':
        raise ValueError(f'--int8 needs --runtime onnxruntime, got {args.runtime}: the quantized models have '
                         "onnxruntime's own operators")
    if args.reference is not None and args.reference not in args.networks:
        raise ValueError(f'--reference {args.reference!r} is not one of the networks: {", ".join(args.networks)}')
    for name in args.networks:
        check_name(name)
        if name.endswith('.py'):
            read_config(str(find_config(name)))
    compiler = os.environ.get('CXX', 'g++')
    if args.device == 'cpu' and {*args.modes} & {*TORCH_KINDS['torch.compile']} and not shutil.which(compiler):
        raise ValueError(f'torch.compile needs the C++ compiler {compiler!r}, which is not on the PATH')
    if args.amp is not None:
        check_amp(args.amp, args.device)


def check_runtime(args: argparse.Namespace) -> None:
    """Raises a ValueError for options of torch, and where the runtime is missing."""
    if args.modes:
        raise ValueError(f'--modes {" ".join(args.modes)} needs --runtime torch: {args.runtime} chooses the memory '
                         'format and compiles by itself')
    for option, value in (('--amp', args.amp), ('--tf32', args.tf32)):
        if value:
            raise ValueError(f'{option} needs --runtime torch: networks run in {args.runtime} in float32, or in INT8')
    if args.device != 'cpu':
        raise ValueError(f'--runtime {args.runtime} needs --device cpu, got {args.device}')
    try:
        require_runtime(args.runtime)
    except ImportError as error:
        raise ValueError(f'--runtime {args.runtime}: {error}') from error


def describe(args: argparse.Namespace) -> str:
    """The machine and what runs on it."""
    machine = describe_machine(args.device)
    return machine if args.runtime == 'torch' else f'{machine}, {describe_runtime(args.runtime)}'


def number_format(args: argparse.Namespace) -> str:
    """What the networks compute in, for tables."""
    return args.amp or ('TF32' if args.tf32 else 'INT8' if args.int8 else 'float32')


def check_amp(amp: str, device: str) -> None:
    image, conv = torch.zeros(1, 1, 4, 4, device=device), nn.Conv2d(1, 1, 3).to(device)
    reason = 'it computes in another type'
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.autocast(device, AMP[amp]):
            warnings.simplefilter('ignore')  # some versions warn and compute in float32, others raise
            if conv(image).dtype == AMP[amp]:
                return
    except RuntimeError as error:
        reason = str(error)
    raise ValueError(f'torch {torch.__version__} has no autocast to {amp} on {device}: {reason}')


def load(name: str, args: argparse.Namespace) -> Network:
    """Builds a network and merges its norms; raises a ValueError where it does not accept images of the size."""
    rows = paper_rows().get(name, [])
    of_the_paper = rows[0].size if rows else (224, 224)
    size = of_the_paper if args.size == ['paper'] else tuple(map(int, (args.size * 2)[:2]))
    torch.manual_seed(0)
    if name.endswith('.py'):
        with config_errors(name):
            model = build_network(name)
    else:
        model = build_network(name)
    try:
        norms = merge_network(model, size)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:  # libraries differ in what they raise
        raise ValueError(f'network {name!r} does not run on images of {size[0]} x {size[1]}: {error}') from error
    images = torch.randn(args.batch, 3, *size, device=args.device)
    return Network(model.to(args.device), images, norms, next((row for row in rows if row.size == size), None))


def prepare(network: Network, mode: str, amp: str | None) -> Callable[[], Tensor]:
    """A function that runs a network once in a mode; its first run, which compiles, is done."""
    model, images, compiled = network.model, network.images, 'compile' in mode
    if any(part in mode for part in FORMATS):
        model = exported_form(model) if 'exported' in mode else model
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    run = torch.compile(model, fullgraph=True) if compiled else model

    def forward() -> Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, AMP.get(amp), enabled=amp is not None):
            return run(images)

    with ExitStack() as stack:
        if compiled:
            import torch._inductor.config as inductor_config
            from torch._dynamo import config as dynamo_config

            # Weights become constants that the compiler lays out and folds. Networks of one class share its code,
            # which by default is compiled for eight of them at most.
            stack.enter_context(inductor_config.patch(freezing=True))
            stack.enter_context(dynamo_config.patch(cache_size_limit=1024))
        forward()
    return forward


def passes_in(forward: Callable[[], Tensor], seconds: float) -> int:
    """How many passes take that long, at least one."""
    forward()
    synchronize()
    start = time.perf_counter()
    forward()
    synchronize()
    return max(1, round(seconds / (time.perf_counter() - start)))


def measure(networks: dict[str, Network], args: argparse.Namespace) -> Times:
    """Prepares each network for each mode and times all of them in alternating rounds."""
    passes: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for name, mode in progress([(name, mode) for mode in args.modes for name in networks], 'preparing and compiling'):
        try:
            network = networks[name]
            passes[name, mode] = (prepare(network, mode, args.amp) if args.runtime == 'torch' else
                                  in_runtime(network.model, network.images, args.runtime, args.int8))
        except Exception as error:  # any, from the compiler: the other networks can be measured
            Console(stderr=True).print(f'{name} is left out of {mode}: {type(error).__name__}: {error}',
                                       style='yellow', markup=False)
    counts = {key: passes_in(forward, args.turn) for key, forward in passes.items()}
    turns = {key: (lambda key=key: [passes[key]() for _ in range(counts[key])]) for key in passes}
    times = time_in_rounds(turns, args.rounds)
    return {key: [second / counts[key] for second in seconds] for key, seconds in times.items()}


def reference_of(name: str, args: argparse.Namespace) -> str | None:
    """What a network is compared with; None for nothing."""
    reference = args.reference
    if reference is None and name.startswith('partialnet_'):
        reference = name.partition('-')[0].replace('partialnet', 'fasternet')
    return reference if reference in args.networks and reference != name else None


def best_mode(times: Times, name: str | None, kind: str) -> str | None:
    """The fastest of a kind's formats for a network; None where it was run in neither."""
    run = [mode for mode in KINDS[kind] if (name, mode) in times]
    return min(run, key=lambda mode: statistics.median(times[name, mode]), default=None)


def rows_of(times: Times, networks: dict[str, Network], args: argparse.Namespace) -> list[dict]:
    """A row for each network and mode, as in the CSV file."""
    rows = []
    for (name, mode), seconds in times.items():
        model, images, norms, printed = networks[name]
        ms = spread([1e3 * second for second in seconds])
        reference = reference_of(name, args)
        compared = (reference, mode) in times
        over = ratio(times, (name, mode), (reference, mode)) if compared else None
        rows.append(dict(
            network=name, mode=mode, height=images.shape[2], width=images.shape[3], batch=args.batch,
            amp=number_format(args), ms=ms.median, ms_low=ms.low, ms_high=ms.high,
            images_per_second=1e3 * args.batch / ms.median, reference=reference if compared else None,
            ratio=over and over.median, ratio_low=over and over.low, ratio_high=over and over.high,
            norms_merged=norms.merged, norms_left=norms.left, rounds=args.rounds,
            paper_top1=printed and printed.top1, machine=describe(args)))
    return rows


def print_modes(rows: Sequence[dict]) -> None:
    def spread_of(row: dict, key: str, digits: int) -> str:
        if row[key] is None:
            return ''
        return f'{row[key]:.{digits}f} ({row[f"{key}_low"]:.{digits}f}-{row[f"{key}_high"]:.{digits}f})'

    print(markdown_table(
        ['network', 'images', 'mode', 'ms per pass (quartiles)', 'images/s', 'time over', 'ratio (quartiles)',
         'norms merged, left'],
        [[row['network'], f'{row["batch"]} x {row["height"]} x {row["width"]}', row['mode'], spread_of(row, 'ms', 2),
          f'{row["images_per_second"]:.1f}', row['reference'], spread_of(row, 'ratio', 3),
          f'{row["norms_merged"]}, {row["norms_left"]}'] for row in rows]))


def print_best(times: Times, networks: dict[str, Network], args: argparse.Namespace) -> None:
    """Each network in its fastest format, over its reference in the reference's own fastest one."""
    kinds = [kind for kind in KINDS if any(mode in args.modes for mode in KINDS[kind])]
    rows = []
    for name, network in networks.items():
        reference = reference_of(name, args)
        row = [name]
        for kind in kinds:
            mode, other = (best_mode(times, which, kind) for which in (name, reference))
            if mode is None:
                row += ['', '', '']
                continue
            row += [next((text for part, text in FORMATS.items() if part in mode), 'contiguous'),
                    f'{1e3 * statistics.median(times[name, mode]):.2f}',
                    ratio(times, (name, mode), (reference, other)).text(3) if other else '']
        base = networks[reference].printed if reference else None
        row.append(f'{network.printed.latency / base.latency:.2f}' if network.printed and base else '')
        rows.append(row)
    headings = [f'{kind}: {column}' if column == 'format' else column for kind in kinds
                for column in ('format', 'ms per pass', 'over the reference (quartiles)')]
    print('\n' + markdown_table(['network', *headings, 'paper, CPU'], rows))


def draw(points: Sequence[tuple[Figure, float]], label: str, title: str, path: Path) -> None:
    """Draws the paper's accuracy over a value of each network: one curve per family, PartialNet's last and thickest."""
    from matplotlib.figure import Figure as Picture
    from matplotlib.ticker import LogLocator, NullFormatter
    families: dict[str, list[tuple[float, float, str]]] = {}
    for figure, value in points:
        family = re.split(r'[- ](?=[A-Z\dx])', figure.name)[0]
        families.setdefault(family, []).append((value, figure.top1, figure.name[len(family):].lstrip('- ') or 'x1'))
    picture = Picture(figsize=(10, 5.5), layout='constrained')
    axes = picture.subplots()
    styles = zip(itertools.cycle(COLORS), itertools.cycle('osD^vP*X'))
    for name in sorted(families, key=lambda name: (name == 'PartialNet', name)):
        values, accuracies, sizes = zip(*sorted(families[name]))
        ours = name == 'PartialNet'
        color, marker = ('#d62728', 'o') if ours else next(styles)
        # The sizes stand in the legend, in the order of the curve: beside the points they would overlap.
        axes.plot(values, accuracies, marker=marker, color=color, linewidth=2.5 if ours else 1,
                  label=f'{name}: {", ".join(sizes)}')
        for value, accuracy, size in zip(values, accuracies, sizes) if ours else ():
            axes.annotate(size, (value, accuracy), color=color, weight='bold', ha='right', va='bottom',
                          xytext=(-4, 3), textcoords='offset points')
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.07, y=0.07)
    axes.set_xlabel(label)
    axes.set_ylabel('ImageNet-1k top-1 (%), as printed in the paper')
    axes.set_title(title, fontsize=9, wrap=True)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend([handles[-1], *handles[:-1]], [labels[-1], *labels[:-1]], frameon=False, fontsize=8,
                loc='center left', bbox_to_anchor=(1, 0.5))
    picture.savefig(path, dpi=150)


def draw_pictures(times: Times, networks: dict[str, Network], kind: str, args: argparse.Namespace) -> None:
    known = {name: network for name, network in networks.items() if network.printed}
    if args.picture:
        medians = {name: statistics.median(times[name, mode]) for name in known
                   if (mode := best_mode(times, name, kind))}
        label = 'throughput (images/s)' if args.batch > 1 else 'latency of one image (ms)'
        title = (f'{describe(args)}, {kind}, fastest format of each, batch {args.batch}, '
                 f'{number_format(args)}')
        draw([(known[name].printed, args.batch / median if args.batch > 1 else 1e3 * median)
              for name, median in medians.items()], f'{label}, measured', title, args.picture)
    if args.flops_picture:
        draw([(network.printed, count_multiply_adds(network.model, (1, *network.images.shape[1:])) / 1e9)
              for network in known.values()], 'multiply-adds (G), counted',
             'Multiply-adds of one image at the size of each network in the paper, norms merged', args.flops_picture)


@command
def main() -> None:
    parser, args = parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.tf32
    try:
        check(args)
        networks = {name: load(name, args) for name in progress(args.networks, 'building')}
    except ValueError as error:
        parser.error(str(error))
    for option in ('picture', 'flops_picture'):
        if getattr(args, option) and not any(network.printed for network in networks.values()):
            parser.error(f'--{option.replace("_", "-")}: the paper prints no accuracy of these networks at this size; '
                         '--size paper takes its sizes')
    times = measure(networks, args)
    if not times:
        parser.exit(1, 'no network could be run in any of the modes\n')
    rows = rows_of(times, networks, args)
    if args.csv:
        with args.csv.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(f'{describe(args)}, {number_format(args)}, {args.rounds} alternating rounds\n')
    print_modes(rows)
    print_best(times, networks, args)
    kind = next(kind for kind in KINDS if any(mode in args.modes for mode in KINDS[kind]))
    draw_pictures(times, networks, kind, args)


if __name__ == '__main__':
    main()
