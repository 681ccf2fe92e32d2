# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Reads what trainings have left in their work folders and checkpoints.

curves   the last values of a metric by network and seed; with --out, a picture of the curves
table    the results of trainings beside the paper's figures for the same config
ratios   the split ratios that searches have learned, and the list for a config
"""
import argparse
import json
import math
import os
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from torch import Tensor

from partialnet_mm.analysis.commands import existing_file, output_file, picture
from partialnet_mm.analysis.measure import markdown_table
from partialnet_mm.analysis.paper import read_figures
from partialnet_mm.checkpoint.pretrained import find_state_dict
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models.dpconv.fixed_ratios import block_ratios, searched_layers
from partialnet_mm.models.dpconv.split_gates import is_legal, ratio_of

#: Metrics of a table, with their heading and the factor that gives percent.
DETECTION = (('coco/bbox_mAP', 'box AP', 100), ('coco/segm_mAP', 'mask AP', 100))
CLASSIFICATION = (('accuracy/top1', 'top-1', 1), )

Curve = dict[int, float]


def read_curve(work_dir: Path, metric: str) -> Curve:
    """The metric by epoch, from all runs of a work folder; a resumed run continues the ones before it.

    Raises:
        ValueError: If the folder has no such metric.
    """
    curve: Curve = {}
    found = set()
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            found.update(values)
            if metric in values and 'lr' not in values:  # training lines have a learning rate
                curve[values['step']] = values[metric]
    if not curve:
        raise ValueError(f'{work_dir} has no log of {metric!r}; it has {sorted(found) or "no logs"}')
    return dict(sorted(curve.items()))


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


def paper_figures(cfg: Config) -> tuple[float, ...] | None:
    """The paper's figures if network, classes and epochs of a training are the paper's, None otherwise."""
    model, arch = cfg.model, cfg.model.get('backbone', {}).get('arch')
    if model.get('backbone', {}).get('type') != 'PartialNet' or not isinstance(arch, str):
        return None
    epochs = cfg.get('train_cfg', {}).get('max_epochs')
    figures = read_figures(Path(__file__).resolve().parents[1] / 'paper' / 'figures.csv')
    if model.type == 'MaskRCNN' and epochs == 12 and model.roi_head.bbox_head.num_classes == 80:
        return next(((figure.box_ap, figure.mask_ap) for figure in figures if figure.box_ap is not None
                     and figure.network == f'mask_rcnn/partialnet_{arch}_1x.py'), None)
    if model.type == 'ImageClassifier' and epochs == 300 and model.head.num_classes == 1000:
        return next(((figure.top1, ) for figure in figures if figure.top1 is not None
                     and figure.network == f'pretrain/partialnet_{arch}_in1k.py'), None)
    return None


def print_table(args: argparse.Namespace) -> None:
    """Box and mask AP of detectors, top-1 of classifiers, of the last measured epoch, as in the paper."""
    rows: dict[tuple, list[list[str]]] = {DETECTION: [], CLASSIFICATION: []}
    for work_dir in args.work_dirs:
        paths = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
        if not paths:
            raise ValueError(f'{work_dir} has no config: name the work folder of a training')
        cfg = Config.fromfile(paths[-1], import_custom_modules=False)
        metrics = CLASSIFICATION if cfg.get('default_scope') == 'mmpretrain' else DETECTION
        curves = [read_curve(work_dir, metric) for metric, _, _ in metrics]
        epochs = cfg.get('train_cfg', {}).get('max_epochs')
        # An earlier, longer training in the same folder is not this one.
        epoch = max(epoch for epoch in curves[0] if epochs is None or epoch <= epochs)
        row = [work_dir.name, f'{epoch} of {epochs or "?"}']
        for (_, _, percent), curve, figure in zip(metrics, curves, paper_figures(cfg) or (None, ) * len(metrics)):
            row += [f'{curve[epoch] * percent:.1f}', '-' if figure is None else f'{figure:.1f}']
        rows[metrics].append(row)
    for metrics, lines in rows.items():
        if lines:
            headings = ['run', 'epoch', *(cell for _, heading, _ in metrics for cell in (heading, "paper's"))]
            print(markdown_table(headings, lines), end='\n\n')


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
    args = parser.parse_args()
    if args.run is print_ratios and (bool(args.config) != bool(args.base)
                                     or (args.config and len(args.checkpoints) > 1)):
        ratios.error('--config FILE.py and --base CONFIG go together, with one CHECKPOINT')
    args.run(args)


if __name__ == '__main__':
    main()
