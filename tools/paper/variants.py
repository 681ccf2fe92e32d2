# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Prints the variants with their counted parameters and multiply-adds beside the paper's (Table 9), as Markdown."""
from pathlib import Path

from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.analysis.measure import markdown_table
from partialnet_mm.analysis.paper import read_figures
from partialnet_mm.analysis.peers import build_network
from partialnet_mm.models import PartialNet


def main() -> None:
    figures = read_figures(Path(__file__).with_name('figures.csv'))
    # Table 9 has a second row for some of Table 1's networks, which is the one that counts.
    paper = {figure.network: figure for figure in figures if figure.table in ('1', '9')}
    rows = []
    for arch, settings in PartialNet.arch_settings.items():
        printed = paper[f'pretrain/partialnet_{arch.partition("-")[0]}_in1k.py']
        model = build_network(f'partialnet_{arch}')
        params = sum(p.numel() for p in model.parameters()) / 1e6
        trained = count_multiply_adds(model, (1, 3, 224, 224)) / 1e9
        model.backbone.switch_to_deploy()
        merged = count_multiply_adds(model, (1, 3, 224, 224)) / 1e9
        rows.append([f'`{arch}`', settings['embed_dim'], ', '.join(map(str, settings['depths'])), f'{params:.2f}',
                     printed.params, f'{merged:.3f}', printed.flops, f'{trained:.3f}'])
    print(markdown_table(['arch', 'width', 'blocks', 'Params (M)', 'paper', 'multiply-adds (G), merged', 'paper',
                          'as trained'], rows))


if __name__ == '__main__':
    main()
