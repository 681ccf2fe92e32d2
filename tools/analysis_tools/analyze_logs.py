# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Reads what trainings have left in their work folders and checkpoints.

curves   the last values of a metric by network and seed; with --out, a picture of the curves
table    the results of trainings beside the paper's figures for the same config
ratios   the split ratios that searches have learned, and the list for a config
report   one HTML page about a training; the name of a work folder alone does the same
"""
import argparse
import functools
import json
import math
import os
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from torch import Tensor

from partialnet_mm.analysis.commands import existing_file, output_file, picture
from partialnet_mm.analysis.measure import markdown_table
from partialnet_mm.analysis.paper import Figure, read_figures
from partialnet_mm.analysis.report import write_report
from partialnet_mm.checkpoint.pretrained import find_state_dict
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.config_types import complete_types, type_name
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models.dpconv.fixed_ratios import block_ratios, searched_layers
from partialnet_mm.models.dpconv.split_gates import is_legal, ratio_of


class Metric(NamedTuple):
    """A column of a table."""

    key: str  # in the log
    heading: str
    figure: str  # the paper's, a field of its figures
    percent: int  # factor that gives percent


#: The columns of the paper's Tables 2 and 11. The first metric of a table decides which epoch is the best.
DETECTION = tuple(Metric(f'coco/{kind}_mAP{key}', f'{part} AP{key.strip("_")}', f'{part}_ap{key.strip("_")}', 100)
                  for kind, part in (('bbox', 'box'), ('segm', 'mask')) for key in ('', '_50', '_75'))
CLASSIFICATION = (Metric('accuracy/top1', 'top-1', 'top1', 1), )

Curve = dict[int, float]


def find_curve(work_dir: Path, metric: str) -> tuple[Curve, set[str]]:
    """The metric by epoch, from all runs of a work folder, and what else the logs have.

    A resumed run continues the ones before it.
    """
    curve: Curve = {}
    found: set[str] = set()
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            found.update(values)
            if metric in values and 'lr' not in values:  # training lines have a learning rate
                curve[values['step']] = values[metric]
    return dict(sorted(curve.items())), found


def read_curve(work_dir: Path, metric: str) -> Curve:
    """As :func:`find_curve`, of a metric that the folder has.

    Raises:
        ValueError: If the folder has no such metric.
    """
    curve, found = find_curve(work_dir, metric)
    if not curve:
        raise ValueError(f'{work_dir} has no log of {metric!r}; it has {sorted(found) or "no logs"}')
    return curve


def print_curves(args: argparse.Namespace) -> None:
    """One row per network: folders whose names differ only in a last "_seed<number>" are runs of one network."""
    curves: dict[str, list[Curve]] = defaultdict(list)
    for work_dir in args.work_dirs:
        curves[re.sub(r'_seed\d+$', '', work_dir.name)].append(read_curve(work_dir, args.metric))
    rows = []
    for name, runs in curves.items():
        last = [list(run.values())[-1] for run in runs]
        epochs = sorted({list(run)[-1] for run in runs})
        rows.append([name, len(runs), ', '.join(map(str, epochs)), f'{statistics.mean(last):.2f}', f'{min(last):.2f}',
                     f'{max(last):.2f}'])
    print(markdown_table(['network', 'seeds', 'epochs', f'last {args.metric}, mean', 'lowest', 'highest'], rows))
    if args.out:
        from matplotlib.figure import Figure
        figure = Figure(figsize=(7, 4.5), layout='constrained')
        axes = figure.subplots()
        for index, (name, runs) in enumerate(curves.items()):
            for number, run in enumerate(runs):
                axes.plot(list(run), list(run.values()), marker='.', color=f'C{index}', alpha=0.8,
                          label=None if number else name)
        axes.set_xlabel('epoch')
        axes.set_ylabel(args.metric)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(args.out, dpi=150)


PROJECT = Path(__file__).resolve().parents[2]
#: What makes a backbone the paper's network, beside its type.
NETWORK = ('arch', 'depth', 'token_mixers', 'spatial_attention', 'split_ratio', 'gate', 'conv_cfg')


def paper_figure(cfg: Config) -> Figure | None:
    """The paper's row if network, classes and epochs of a training are the paper's, None otherwise."""
    model, epochs = cfg.model, cfg.get('train_cfg', {}).get('max_epochs')
    if type_name(model.type) == 'MaskRCNN' and epochs == 12 and model.roi_head.bbox_head.num_classes == 80:
        folder, column = 'mask_rcnn', 'box_ap'
    elif type_name(model.type) == 'ImageClassifier' and epochs == 300 and model.head.num_classes == 1000:
        folder, column = 'pretrain', 'top1'
    else:
        return None
    # The first row of a config is the config's own; verify_paper.py counts others by changing the config.
    rows = {figure.network: figure for figure in reversed(read_figures(PROJECT / 'tools' / 'paper' / 'figures.csv'))
            if getattr(figure, column) is not None and figure.network.startswith(f'{folder}/')}
    trained = network_in(model.backbone)
    return next((figure for network, figure in rows.items() if network_of(network) == trained), None)


@functools.cache
def network_of(config: str) -> list:
    """The network of a config of this project."""
    return network_in(Config.fromfile(PROJECT / 'configs' / config, import_custom_modules=False).model.backbone)


def network_in(backbone: dict) -> list:
    return [type_name(backbone.type), *(backbone.get(key) for key in NETWORK)]


def print_table(args: argparse.Namespace) -> None:
    """AP of boxes and masks of detectors, top-1 of classifiers: of the last epoch, of the best, and the paper's.

    The paper does not say which of the two it reports; the official code tests the best. Best is the epoch of the
    highest box AP or top-1, which save_best keeps.
    """
    rows: dict[tuple, list[list[str]]] = {DETECTION: [], CLASSIFICATION: []}
    for work_dir in args.work_dirs:
        paths = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
        if not paths:
            raise ValueError(f'{work_dir} has no config: name the work folder of a training')
        cfg = complete_types(Config.fromfile(paths[-1], import_custom_modules=False))
        metrics = CLASSIFICATION if cfg.get('default_scope') == 'mmpretrain' else DETECTION
        # Detectors of boxes only have no mask AP.
        curves = [read_curve(work_dir, metrics[0].key), *(find_curve(work_dir, metric.key)[0]
                                                          for metric in metrics[1:])]
        epochs = cfg.get('train_cfg', {}).get('max_epochs')
        # An earlier, longer training in the same folder is not this one.
        measured = {epoch: value for epoch, value in curves[0].items() if epochs is None or epoch <= epochs}
        last, best = max(measured), max(measured, key=measured.get)
        for name, epoch in [('last and best', last)] if last == best else [('last', last), ('best', best)]:
            rows[metrics].append([work_dir.name, f'{epoch} of {epochs or "?"}, {name}',
                                  *(f'{curve[epoch] * metric.percent:.1f}' if epoch in curve else '-'
                                    for metric, curve in zip(metrics, curves))])
        figure = paper_figure(cfg)
        if figure is not None:
            rows[metrics].append([work_dir.name, "the paper's",
                                  *(f'{getattr(figure, metric.figure):.1f}' for metric in metrics)])
    for metrics, lines in rows.items():
        if lines:
            print(markdown_table(['run', 'epoch', *(metric.heading for metric in metrics)], lines), end='\n\n')


class Search(NamedTuple):
    """What a checkpoint says about a search."""

    path: str
    #: The budget; None in a checkpoint without RatioHook.
    kappa: float | None
    #: By layer: ratio, and whether the gates are in order.
    ratios: dict[str, float]
    legal: dict[str, bool]
    #: Cost of convolutions of all channels over that of these: the kappa that would allow exactly this.
    reached_kappa: float
    state_dict: dict[str, Tensor]

    @property
    def label(self) -> str:
        return f'kappa {self.kappa:g}' if self.kappa else Path(self.path).stem


def read_search(path: str) -> Search:
    """Reads a checkpoint of a search.

    Raises:
        ValueError: If it is damaged, or of something else.
        FileNotFoundError: If it does not exist.
    """
    content = read_checkpoint(path)
    state_dict = find_state_dict(content)
    layers = searched_layers(state_dict)
    if not layers:
        raise ValueError(f'checkpoint {path!r} is of no search for split ratios: it has no DPConv layers')
    short = {name: name.replace('backbone.', '', 1).replace('.token_mixer', '') for name in layers}
    full = {name: len(state_dict[f'{name}.conv.weight'])**2 for name in layers}
    cost = sum(full[name] * ratio_of(gates) for name, gates in layers.items())
    return Search(
        path=path,
        kappa=content.get('meta', {}).get('dpconv', {}).get('kappa'),
        ratios={short[name]: ratio_of(gates) for name, gates in layers.items()},
        legal={short[name]: is_legal(gates) for name, gates in layers.items()},
        reached_kappa=sum(full.values()) / cost,
        state_dict=state_dict)


def print_ratios(args: argparse.Namespace) -> None:
    """Layers by checkpoints, in Markdown, and the lists for configs."""
    searches = [read_search(path) for path in args.checkpoints]
    for search in searches[1:]:
        if list(search.ratios) != list(searches[0].ratios):
            raise ValueError(f'{search.path!r} and {searches[0].path!r} are of different networks: they have '
                             f'{len(search.ratios)} and {len(searches[0].ratios)} DPConv layers, or others')
    rows = [[layer, *(f'1/{1 / search.ratios[layer]:g}{"" if search.legal[layer] else " *"}' for search in searches)]
            for layer in searches[0].ratios]
    rows.append(['all, by cost', *(f'1/{search.reached_kappa:.2f}' for search in searches)])
    print(markdown_table(['layer', *(search.label for search in searches)], rows))
    if not all(all(search.legal.values()) for search in searches):
        print('* gates out of order: other channels than the first are convolved')
    for search in searches:
        try:
            ratios = ', '.join(f'{ratio:g}' for ratio in block_ratios(search.state_dict))
            print(f'split_ratio=[{ratios}]  # {search.path}')
        except ValueError as error:
            print(f'no split_ratio list for {search.path}: {error}')
    if args.picture:
        draw_ratios(searches, args.picture)
    if args.config:
        write_config(searches[0], args.base, args.config)


def draw_ratios(searches: list[Search], path: Path) -> None:
    """Draws the ratios by layer, one line per checkpoint, as the paper's Figure 7."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    least = min(min(search.ratios.values()) for search in searches)
    for search in searches:
        axes.plot(list(search.ratios), list(search.ratios.values()), marker='o', alpha=0.8, label=search.label)
    axes.set_yscale('log', base=2)
    exponents = range(round(-math.log2(least)) + 1)
    axes.set_yticks([0.5**e for e in exponents], [f'1/{2**e}' if e else '1' for e in exponents])
    axes.tick_params(axis='x', rotation=90)
    axes.set_xlabel('layer')
    axes.set_ylabel('split ratio')
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def write_config(search: Search, base: Path, path: Path) -> None:
    """Writes a config that has another's settings and the learned ratios, fixed."""
    ratios = ', '.join(f'{ratio:g}' for ratio in block_ratios(search.state_dict))
    relative = Path(os.path.relpath(base, path.resolve().parent)).as_posix()
    budget = f' within kappa={search.kappa:g}' if search.kappa else ''
    path.write_text(f'# Split ratios learned by DPConv{budget}, one per block.\n'
                    f'_base_ = {relative!r}\n\nmodel = dict(backbone=dict(split_ratio=[{ratios}]))\n')


def print_report(args: argparse.Namespace) -> None:
    """Losses, metrics, AP by class, images with errors, speed and config, in one page that needs no network."""
    print(write_report(args.work_dir, args.out))


@command
def main() -> None:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    curves = commands.add_parser('curves', description=print_curves.__doc__)
    curves.set_defaults(run=print_curves)
    curves.add_argument('work_dirs', nargs='+', type=Path, help='work folders of tools/train.py')
    curves.add_argument('--metric', default='accuracy/top1', help='what to compare (default: accuracy/top1)')
    curves.add_argument('--out', type=picture, help='picture of the curves')
    table = commands.add_parser('table', description=print_table.__doc__)
    table.set_defaults(run=print_table)
    table.add_argument('work_dirs', nargs='+', type=Path, help='work folders of tools/train.py')
    ratios = commands.add_parser('ratios', description=print_ratios.__doc__)
    ratios.set_defaults(run=print_ratios)
    ratios.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT', help='of searches in one network')
    ratios.add_argument('--picture', type=picture, metavar='FILE', help='picture to write')
    ratios.add_argument('--config', type=output_file, metavar='FILE.py',
                        help='config to write; takes one checkpoint, and --base')
    ratios.add_argument('--base', type=existing_file, metavar='CONFIG',
                        help='config to retrain by, of a PartialNet of fixed ratios')
    report = commands.add_parser('report', description=print_report.__doc__)
    report.set_defaults(run=print_report)
    report.add_argument('work_dir', type=Path, help='work folder of tools/train.py')
    report.add_argument('--out', type=output_file, metavar='FILE.html',
                        help='page to write (default: report.html in the work folder)')
    words = sys.argv[1:]
    if words and words[0] not in commands.choices and Path(words[0]).is_dir():
        words.insert(0, 'report')
    args = parser.parse_args(words)
    if args.run is print_ratios and (bool(args.config) != bool(args.base)
                                     or (args.config and len(args.checkpoints) > 1)):
        ratios.error('--config FILE.py and --base CONFIG go together, with one CHECKPOINT')
    args.run(args)


if __name__ == '__main__':
    main()
