# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Prints the variants with their counted parameters and multiply-adds beside the paper's, as Markdown."""
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.models import PartialNet

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
# Appendix, Table 9: parameters in M, FLOPs (multiply-adds) in G; Table 8: ImageNet top-1.
PAPER = {'t0': (4.3, 0.25, 73.9), 't1': (7.8, 0.55, 78.1), 't2': (12.6, 1.03, 80.2), 's': (29.0, 2.71, 82.1),
         'm': (61.3, 6.69, 83.1), 'l': (104.4, 11.91, 83.9)}


def main() -> None:
    init_default_scope('mmpretrain')
    print('| arch | width | blocks | Params (M) | paper | multiply-adds (G), merged | paper | as trained |\n'
          '|---|---|---|---|---|---|---|---|')
    for arch, settings in PartialNet.arch_settings.items():
        variant = arch.split('-')[0]
        cfg = Config.fromfile(CONFIGS / 'pretrain' / f'partialnet_{variant}_in1k.py')
        cfg.model.backbone.arch = arch
        cfg.model.train_cfg = None  # no batch augmentation: it is a forward pass that is counted
        model = MODELS.build(cfg.model)
        params = sum(p.numel() for p in model.parameters()) / 1e6
        trained = count_multiply_adds(model, (1, 3, 224, 224)) / 1e9
        model.backbone.switch_to_deploy()
        merged = count_multiply_adds(model, (1, 3, 224, 224)) / 1e9
        blocks = ', '.join(map(str, settings['depths']))
        print(f'| `{arch}` | {settings["embed_dim"]} | {blocks} | {params:.2f} | {PAPER[variant][0]} | {merged:.3f} | '
              f'{PAPER[variant][1]} | {trained:.3f} |')


if __name__ == '__main__':
    main()
