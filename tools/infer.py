# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Runs a classifier, detector or segmentor on images or folders of images; writes pictures and predictions."""
import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.engine.runners.command_line import (
    add_config_arguments,
    add_trust_argument,
    load_config,
    read_trusted,
    require_fit,
)
from partialnet_mm.engine.runners.own_data import is_own_data_config
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import merge_model
from partialnet_mm.preflight.image_folder import EXTENSIONS
from partialnet_mm.preflight.images import check_image

#: What a predictor returns for each image: the prediction for the JSON file, the label map or None, the picture (RGB).
Prediction = tuple[dict, 'np.ndarray | None', np.ndarray]


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = ToolParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file; with --trust-checkpoint also an address')
    parser.add_argument('images', nargs='+', help='image files, or folders, which are searched with all subfolders')
    parser.add_argument('--out-dir', required=True, type=Path,
                        help='folder for pictures/<image> and predictions/<image>.json; segmentors also write '
                        'predictions/<image>.png, the label of each pixel. Nothing starts if one of these files '
                        'exists, unless --force is given')
    parser.add_argument('--force', action='store_true',
                        help='overwrite the results of an earlier run in --out-dir; inputs are never overwritten')
    parser.add_argument('--batch-size', type=int, default=1, help='images per batch (default: 1)')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='lowest score of a detection that is drawn; the JSON has all (default: 0.3)')
    parser.add_argument('--deploy', action='store_true', help='merge the network first: the same results, faster')
    parser.add_argument('--device', help="'cpu', 'cuda', 'cuda:1', ... (default: a GPU if there is one)")
    add_trust_argument(parser)
    return parser, parser.parse_args()


def find_images(inputs: Sequence[str], out_dir: Path) -> dict[str, str]:
    """Paths of all images by the names of their results.

    Raises:
        ValueError: If there are none, two have the same name, or the results
            would lie in a folder of images.
    """
    images: dict[str, str] = {}
    for given in map(Path, inputs):
        if given.is_dir():
            found = {str(p.relative_to(given)): str(p) for p in sorted(given.rglob('*'))
                     if p.suffix.lower() in EXTENSIONS and p.is_file()}
            if not found:
                raise ValueError(f'no image in folder {str(given)!r}: looked for files that end in '
                                 f'{", ".join(EXTENSIONS)}')
            if given.resolve() in (out_dir.resolve(), *out_dir.resolve().parents):
                raise ValueError(f'--out-dir {str(out_dir)!r} lies in the folder of images {str(given)!r}: the next '
                                 'run would take its pictures for images')
        elif given.is_file():
            found = {given.name: str(given)}
        else:
            raise ValueError(f'image or folder {str(given)!r} does not exist')
        for name, path in found.items():
            if images.setdefault(name, path) != path:
                raise ValueError(f'{images[name]!r} and {path!r} would both give {name!r} in --out-dir: run them '
                                 'separately')
    return images


def build_detector(cfg: Config, checkpoint: str, device: str, score_thr: float) -> tuple[object, Callable]:
    from mmdet.apis import DetInferencer
    inferencer = DetInferencer(cfg, checkpoint, device, show_progress=False)

    def predict(paths: list[str]) -> Iterator[Prediction]:
        outputs = inferencer(paths, batch_size=len(paths), return_vis=True, pred_score_thr=score_thr)
        classes = inferencer.model.dataset_meta['classes']
        for found, picture in zip(outputs['predictions'], outputs['visualization']):
            yield dict(found, classes=[classes[label] for label in found.get('labels', ())]), None, picture

    return inferencer, predict


def build_segmentor(cfg: Config, checkpoint: str, device: str, score_thr: float) -> tuple[object, Callable]:
    from mmseg.apis import MMSegInferencer
    inferencer = MMSegInferencer(cfg, checkpoint, device=device)
    inferencer.show_progress = False  # an argument in one of the two sets of packages only

    def predict(paths: list[str]) -> Iterator[Prediction]:
        outputs = inferencer(paths, batch_size=len(paths), return_vis=True)
        maps, pictures = outputs['predictions'], outputs['visualization']
        if len(paths) == 1:
            maps, pictures = [maps], [pictures]
        classes = inferencer.model.dataset_meta['classes']
        for labels, picture in zip(maps, pictures):
            present, counts = np.unique(labels, return_counts=True)
            parts = {classes[label]: float(count / labels.size) for label, count in zip(present, counts)}
            yield dict(parts=parts), labels, picture

    return inferencer, predict


def build_classifier(cfg: Config, checkpoint: str, device: str, score_thr: float) -> tuple[object, Callable]:
    from mmpretrain.apis import ImageClassificationInferencer
    from mmpretrain.visualization import UniversalVisualizer
    inferencer = ImageClassificationInferencer(cfg, checkpoint, device)
    visualizer = UniversalVisualizer()

    def predict(paths: list[str]) -> Iterator[Prediction]:
        for data in inferencer.preprocess(paths, batch_size=len(paths)):
            samples = inferencer.forward(data)
            for path, sample, found in zip(paths, samples, inferencer.postprocess(samples, None)):
                picture = visualizer.visualize_cls(mmcv.imread(path, channel_order='rgb'), sample, inferencer.classes,
                                                   draw_gt=False)
                yield dict(found, pred_scores=found['pred_scores'].tolist()), None, picture

    return inferencer, predict


BUILDERS = dict(mmdet=build_detector, mmseg=build_segmentor, mmpretrain=build_classifier)


def result_files(out_dir: Path, name: str) -> tuple[Path, Path, Path]:
    """The picture, the prediction and, of a segmentor, the label map of an image."""
    ending = '' if Path(name).suffix.lower() in ('.jpg', '.jpeg', '.png') else '.png'
    predictions = out_dir / 'predictions'
    return out_dir / 'pictures' / (name + ending), predictions / (name + '.json'), predictions / (name + '.png')


def refuse_overwrites(outputs: Iterable[Path], inputs: Iterable[str], force: bool) -> None:
    """Calls :func:`refuse_overwrite` for every output, with the one input that could be the same file.

    Raises:
        ValueError: If an output is an input, or exists and ``force`` is False.
    """
    def identity(path: str | Path) -> tuple[int, int]:
        status = os.stat(path)
        return status.st_dev, status.st_ino

    sources = {identity(path): path for path in inputs}
    for path in outputs:
        source = sources.get(identity(path)) if path.exists() else None
        refuse_overwrite(path, [] if source is None else [source], force)


def write(files: tuple[Path, Path, Path], prediction: Prediction) -> None:
    found, labels, picture = prediction
    picture_file, prediction_file, label_file = files
    mmcv.imwrite(np.ascontiguousarray(picture[..., ::-1]), str(picture_file))
    prediction_file.parent.mkdir(parents=True, exist_ok=True)
    if labels is not None:
        mmcv.imwrite(labels.astype(np.uint8), str(label_file))
    prediction_file.write_text(json.dumps(found))


@command
def main() -> None:
    parser, args = parse_args()
    cfg = load_config(parser, args)
    if args.batch_size < 1:
        parser.error(f'--batch-size must be at least 1, got {args.batch_size}')
    if cfg.get('default_scope') not in BUILDERS:
        parser.error(f'default_scope of {args.config} is {cfg.get("default_scope")!r}; allowed are {list(BUILDERS)}')
    if '://' not in args.checkpoint and not os.path.isfile(args.checkpoint):
        parser.error(f'checkpoint {args.checkpoint!r} does not exist')
    device = args.device or get_device()
    init_default_scope(cfg.default_scope)
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = None  # pictures are written here
    if device.startswith('cuda') and not torch.cuda.is_available():
        parser.error(f'--device {device}: torch sees no GPU')
    try:
        images = find_images(args.images, args.out_dir)
        files = {name: result_files(args.out_dir, name) for name in images}
        inputs = [path for path in (args.config, args.checkpoint, *images.values()) if os.path.isfile(path)]
        refuse_overwrites([path for found in files.values() for path in found], inputs, args.force)
        content = None if args.trust_checkpoint else read_trusted(args.checkpoint)
        inferencer, predict = BUILDERS[cfg.default_scope](cfg, args.checkpoint, device, args.score_thr)
        if content is not None:
            require_fit(inferencer.model, content, args.checkpoint, least=1)
        if args.deploy:
            merge_model(inferencer.model)
    except (TypeError, ValueError) as error:
        hint = '' if not is_own_data_config(cfg) or cfg.get('classes') else (
            '\nThis config takes its classes from the training data, which is missing here: use the config that the '
            'training saved in its work folder, or --cfg-options classes=...')
        parser.exit(1, f'nothing was started: {error}{hint}\n')

    broken: list[str] = []
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task('images', total=len(images))
        names = list(images)
        for start in range(0, len(names), args.batch_size):
            batch = names[start:start + args.batch_size]
            findings = {name: check_image(images[name]) for name in batch}
            broken += [str(finding) for found in findings.values() for finding in found]
            whole = [name for name in batch if not findings[name]]
            if whole:
                for name, prediction in zip(whole, predict([images[name] for name in whole])):
                    write(files[name], prediction)
            progress.advance(task, len(batch))
    print(f'{len(images) - len(broken)} images: pictures in {args.out_dir / "pictures"}, predictions in '
          f'{args.out_dir / "predictions"}')
    if broken:
        print(f'{len(broken)} images could not be read:\n' + '\n'.join(broken), file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
