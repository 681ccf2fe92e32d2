# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Prints the split ratios that searches have learned: a table, one column a checkpoint, and the list for a config.

--picture draws ratio by layer, one line a checkpoint, as the paper's Figure 7. --config writes a config that retrains
with the ratios fixed.
"""
import argparse
import math
import os
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from partialnet_mm.checkpoint.pretrained import find_state_dict
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.models.dpconv.fixed_ratios import block_ratios, searched_layers
from partialnet_mm.models.dpconv.split_gates import is_legal, ratio_of


class Search(NamedTuple):
    """What a checkpoint says of a search."""
    path: str
    #: The budget; None in a checkpoint that RatioHook has not seen.
    kappa: float | None
    #: By layer: ratio, and whether the gates are in order.
    ratios: dict[str, float]
    legal: dict[str, bool]
    #: Cost of convolutions of all channels over that of these: what kappa would allow exactly this.
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


def as_table(searches: list[Search]) -> str:
    """Layers by checkpoints, in Markdown."""
    rows = [['layer', *(search.label for search in searches)], ['---'] * (len(searches) + 1)]
    for layer in searches[0].ratios:
        rows.append([layer, *(f'1/{1 / search.ratios[layer]:g}{"" if search.legal[layer] else " *"}'
                              for search in searches)])
    rows.append(['all, by cost', *(f'1/{search.reached_kappa:.2f}' for search in searches)])
    table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
    if not all(all(search.legal.values()) for search in searches):
        table += '\n* gates out of order: other channels than the first are convolved'
    return table


def draw(searches: list[Search], path: str) -> None:
    """Draws the ratios by layer."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
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
    plt.close(figure)


def write_config(search: Search, base: str, path: str) -> None:
    """Writes a config that has another's settings and the learned ratios."""
    ratios = ', '.join(f'{ratio:g}' for ratio in block_ratios(search.state_dict))
    relative = Path(os.path.relpath(base, Path(path).resolve().parent)).as_posix()
    Path(path).write_text(
        f'# Split ratios learned by DPConv{f" within kappa={search.kappa:g}" if search.kappa else ""}, one a block.\n'
        f'_base_ = {relative!r}\n\nmodel = dict(backbone=dict(split_ratio=[{ratios}]))\n')


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT', help='of searches in one network')
    parser.add_argument('--picture', metavar='FILE', help='picture to write: .png, .svg, .pdf')
    parser.add_argument('--config', metavar='FILE.py', help='config to write; takes one checkpoint, and --base')
    parser.add_argument('--base', metavar='CONFIG', help='config to retrain by, of a PartialNet of fixed ratios')
    return parser, parser.parse_args()


def main() -> None:
    parser, args = parse_args()
    if bool(args.config) != bool(args.base) or (args.config and len(args.checkpoints) > 1):
        parser.error('--config FILE.py and --base CONFIG go together, with one CHECKPOINT')
    if args.base and not os.path.isfile(args.base):
        parser.error(f'config {args.base!r} does not exist')
    try:
        searches = [read_search(path) for path in args.checkpoints]
        for search in searches[1:]:
            if list(search.ratios) != list(searches[0].ratios):
                raise ValueError(f'{search.path!r} and {searches[0].path!r} are of different networks: they have '
                                 f'{len(search.ratios)} and {len(searches[0].ratios)} DPConv layers, or others')
        print(as_table(searches))
        for search in searches:
            try:
                ratios = ', '.join(f'{ratio:g}' for ratio in block_ratios(search.state_dict))
                print(f'split_ratio=[{ratios}]  # {search.path}')
            except ValueError as error:
                print(f'no split_ratio list for {search.path}: {error}')
        if args.picture:
            draw(searches, args.picture)
        if args.config:
            write_config(searches[0], args.base, args.config)
    except (OSError, ValueError) as error:
        parser.exit(1, f'{error}\n')


if __name__ == '__main__':
    main()
