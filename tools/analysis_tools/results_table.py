# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Prints a Markdown table of what trainings reached, beside the paper's figures for the same config.

From the logs and the config in each work folder: box and mask AP of detectors, top-1 of classifiers. It takes the last
measured epoch, as the paper does, not the best. The paper's figure stands beside a run only if its network, its number
of classes and its epochs are the paper's.
"""
import argparse
from pathlib import Path

from learning_curves import read_curve
from mmengine.config import Config

#: Metrics of a table, with their heading and what turns them into percent.
DETECTION = (('coco/bbox_mAP', 'box AP', 100), ('coco/segm_mAP', 'mask AP', 100))
CLASSIFICATION = (('accuracy/top1', 'top-1', 1), )
#: Table 7: Mask R-CNN, 1x schedule; Table 8: ImageNet, 300 epochs.
PAPER_AP = {'s': (42.7, 39.3), 'm': (44.3, 40.6), 'l': (44.7, 41.0)}
PAPER_TOP1 = {'t0': (73.9, ), 't1': (78.1, ), 't2': (80.2, ), 's': (82.1, ), 'm': (83.1, ), 'l': (83.9, )}


def read_config(work_dir: Path) -> Config:
    """The config that the last run has left in its work folder.

    Raises:
        ValueError: If there is none.
    """
    paths = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise ValueError(f'{work_dir} has no config: name the work folder of a training')
    return Config.fromfile(paths[-1], import_custom_modules=False)


def paper_figures(cfg: Config) -> tuple[float, ...] | None:
    """What the paper reports for exactly this training, or None."""
    model, arch = cfg.model, cfg.model.get('backbone', {}).get('arch')
    if model.get('backbone', {}).get('type') != 'PartialNet' or not isinstance(arch, str):
        return None
    epochs = cfg.get('train_cfg', {}).get('max_epochs')
    if model.type == 'MaskRCNN' and epochs == 12 and model.roi_head.bbox_head.num_classes == 80:
        return PAPER_AP.get(arch)
    if model.type == 'ImageClassifier' and epochs == 300 and model.head.num_classes == 1000:
        return PAPER_TOP1.get(arch)
    return None


def row(work_dir: Path) -> tuple[tuple, str]:
    """The metrics of a work folder and its row.

    Raises:
        ValueError: If it has no config or no log of them.
    """
    cfg = read_config(work_dir)
    metrics = CLASSIFICATION if cfg.get('default_scope') == 'mmpretrain' else DETECTION
    curves = [read_curve(work_dir, metric) for metric, _, _ in metrics]
    epochs = cfg.get('train_cfg', {}).get('max_epochs')
    # An earlier, longer training in the same folder is not this one.
    epoch = max(epoch for epoch in curves[0] if epochs is None or epoch <= epochs)
    paper = paper_figures(cfg) or (None, ) * len(metrics)
    cells = [work_dir.name, f'{epoch} of {epochs or "?"}']
    for (_, _, percent), curve, figure in zip(metrics, curves, paper):
        cells += [f'{curve[epoch] * percent:.1f}', '-' if figure is None else f'{figure:.1f}']
    return metrics, '| ' + ' | '.join(cells) + ' |'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', type=Path, help='work folders of tools/train.py')
    args = parser.parse_args()
    try:
        rows = [row(work_dir) for work_dir in args.work_dirs]
    except ValueError as error:
        parser.error(str(error))
    for metrics in (DETECTION, CLASSIFICATION):
        lines: list[str] = [line for kind, line in rows if kind == metrics]
        if lines:
            headings = ['run', 'epoch'] + [cell for _, heading, _ in metrics for cell in (heading, "paper's")]
            print('| ' + ' | '.join(headings) + ' |\n' + '|---' * len(headings) + '|')
            print('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
