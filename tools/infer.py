# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Runs a classifier, detector or segmentor on images or folders of images; writes pictures and predictions."""
import argparse
import copy
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import TRANSFORMS, init_default_scope
from mmengine.structures import BaseDataElement
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from partialnet_mm.analysis.commands import any_device, positive
from partialnet_mm.checkpoint import MissingCheckpointError
from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.config_types import type_name
from partialnet_mm.engine.runners.command_line import (
    add_config_arguments,
    add_trust_argument,
    load_config,
    read_trusted,
    require_fit,
)
from partialnet_mm.engine.runners.config_file import ConfigError, config_errors
from partialnet_mm.engine.runners.own_data import is_own_data_config
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import PartialNet, merge_model
from partialnet_mm.preflight import leaf_datasets

#: What a predictor returns for each image: the prediction for the JSON file, the label map or None, the picture (RGB).
Prediction = tuple[dict, 'np.ndarray | None', np.ndarray]
#: Endings of the files that are taken from a folder: all that OpenCV has a decoder for.
EXTENSIONS = ('.avif', '.bmp', '.dib', '.exr', '.gif', '.hdr', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pfm', '.pgm',
              '.pic', '.png', '.pnm', '.ppm', '.pxm', '.ras', '.sr', '.tif', '.tiff', '.webp')


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
    parser.add_argument('--batch-size', type=positive, default=1, help='images per batch (default: 1)')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='lowest score of a detection that is drawn; the JSON has all (default: 0.3)')
    parser.add_argument('--deploy', action='store_true', help='merge the network first: the same results, faster')
    parser.add_argument('--device', type=any_device,
                        help="'cpu', 'cuda', 'cuda:1', ... (default: a GPU if there is one)")
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


def build_detector(cfg: Config, checkpoint: str, device: str, score_thr: float) -> tuple[nn.Module, Callable]:
    from mmdet.apis import DetInferencer
    inferencer = DetInferencer(cfg, checkpoint, device, show_progress=False)

    def interpret(sample: BaseDataElement, picture: np.ndarray) -> Prediction:
        found, classes = inferencer.pred2dict(sample), inferencer.model.dataset_meta['classes']
        inferencer.visualizer.add_datasample('', picture, sample, draw_gt=False, pred_score_thr=score_thr)
        return (dict(found, classes=[classes[label] for label in found.get('labels', ())]), None,
                inferencer.visualizer.get_image())

    return inferencer.model, interpret


def build_segmentor(cfg: Config, checkpoint: str, device: str, score_thr: float) -> tuple[nn.Module, Callable]:
    from mmseg.apis import MMSegInferencer
    inferencer = MMSegInferencer(cfg, checkpoint, device=device)
    inferencer.visualizer.alpha = 0.8

    def interpret(sample: BaseDataElement, picture: np.ndarray) -> Prediction:
        labels, classes = sample.pred_sem_seg.data[0].cpu().numpy(), inferencer.model.dataset_meta['classes']
        present, counts = np.unique(labels, return_counts=True)
        inferencer.visualizer.add_datasample('', picture, sample, draw_gt=False)
        return (dict(parts={classes[label]: float(count / labels.size) for label, count in zip(present, counts)}),
                labels, inferencer.visualizer.get_image())

    return inferencer.model, interpret


def build_classifier(cfg: Config, checkpoint: str, device: str, score_thr: float) -> tuple[nn.Module, Callable]:
    from mmpretrain.apis import ImageClassificationInferencer
    from mmpretrain.visualization import UniversalVisualizer
    inferencer = ImageClassificationInferencer(cfg, checkpoint, device)
    visualizer = UniversalVisualizer()

    def interpret(sample: BaseDataElement, picture: np.ndarray) -> Prediction:
        found, = inferencer.postprocess([sample], None)
        drawn = visualizer.visualize_cls(picture, sample, inferencer.classes, draw_gt=False)
        return dict(found, pred_scores=found['pred_scores'].tolist()), None, drawn

    return inferencer.model, interpret


BUILDERS = dict(mmdet=build_detector, mmseg=build_segmentor, mmpretrain=build_classifier)
PACKING = dict(mmdet='PackDetInputs', mmseg='PackSegInputs', mmpretrain='PackInputs')


class Pipeline:
    """The test pipeline of a config, without annotations: what its loader reads is what can be predicted."""

    def __init__(self, steps: Sequence[dict]) -> None:
        self.steps = Compose([TRANSFORMS.build(step) for step in steps
                              if 'Annotations' not in type_name(step.get('type'))]).transforms

    def __call__(self, path: str) -> tuple[dict, np.ndarray]:
        """The packed image, and the picture (height, width, RGB) to draw on; raises an error if it cannot be read."""
        check_whole(path)
        results, picture = dict(img_path=path, img_id=0), None
        for step in self.steps:
            results = step(results)
            if results is None:
                raise ValueError('it cannot be read')
            if picture is None and isinstance(results.get('img'), np.ndarray):
                picture = displayable(results['img'])
        return results, picture


def check_whole(path: str) -> None:
    """Raises a ValueError for an empty file, and for an image that is cut off, which OpenCV completes in grey."""
    size = os.path.getsize(path)
    if size == 0:
        raise ValueError('the file has 0 bytes')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(path) as image:
                image.load()
    except Exception as error:  # Pillow reads other formats than OpenCV, and no huge images
        if 'truncated' in str(error):
            raise ValueError(f'the file is truncated ({size} bytes)') from error


def displayable(image: np.ndarray) -> np.ndarray:
    """An image of any number of channels and any type, in BGR if it has colours, as 8-bit RGB."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., 2::-1] if image.shape[2] >= 3 else image[..., [0, 0, 0]]
    if image.dtype != np.uint8 and (image.max() > 255 or image.max() <= 1):
        low, high = float(image.min()), float(image.max())
        image = (image - low) * (255 / (high - low or 1))
    return np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))


def pad_small(data: dict, least: int) -> dict:
    """Pads preprocessed images to the least size of the network, as mmdet does for all its models."""
    inputs = data['inputs']
    height, width = inputs.shape[-2:]
    bottom, right = max(least - height, 0), max(least - width, 0)
    if bottom or right:
        data['inputs'] = F.pad(inputs, (0, right, 0, bottom))
        shape = tuple(data['inputs'].shape[-2:])
        for sample in data['data_samples']:
            left, former_right, top, former_bottom = sample.metainfo.get('img_padding_size', (0, 0, 0, 0))
            sample.set_metainfo(dict(pad_shape=shape, batch_input_shape=shape, img_padding_size=(
                left, former_right + right, top, former_bottom + bottom)))
    return data


@torch.no_grad()
def predict(model: nn.Module, packed: Sequence[dict]) -> list[BaseDataElement]:
    """The predictions for images of a test pipeline."""
    data = pad_small(model.data_preprocessor(pseudo_collate(packed), False), PartialNet.min_size)
    return list(model(**data, mode='predict'))


def outcomes(paths: dict[str, str], pipeline: Pipeline, model: nn.Module,
             interpret: Callable) -> Iterator[tuple[str, Prediction | Exception]]:
    """The prediction for each image of a batch, or why there is none."""
    loaded = {}
    for name, path in paths.items():
        try:
            loaded[name] = pipeline(path)
        except Exception as error:  # loaders raise many types for damaged files
            yield name, error
    try:
        samples = predict(model, [packed for packed, _ in loaded.values()]) if loaded else []
    except Exception as error:  # one image may keep the others of its batch from being predicted
        if len(loaded) == 1:
            yield next(iter(loaded)), error
        else:
            for name in loaded:
                yield from outcomes({name: paths[name]}, pipeline, model, interpret)
        return
    for (name, (_, picture)), sample in zip(loaded.items(), samples):
        try:
            outcome = interpret(sample, picture)
        except Exception as error:  # visualizers do not draw on every image
            outcome = error
        yield name, outcome


def result_files(out_dir: Path, name: str) -> tuple[Path, Path, Path]:
    """The picture, the prediction and, of a segmentor, the label map of an image."""
    ending = '' if Path(name).suffix.lower() in ('.jpg', '.jpeg', '.png') else '.png'
    predictions = out_dir / 'predictions'
    return out_dir / 'pictures' / (name + ending), predictions / (name + '.json'), predictions / (name + '.png')


def refuse_overwrites(outputs: Iterable[Path], inputs: Iterable[str], force: bool) -> None:
    """Calls :func:`refuse_overwrite` for every output, with the one input that could be the same file.

    Raises:
        ValueError: If an output is an input or that of two images, or exists and ``force`` is False.
    """
    def identity(path: str | Path) -> tuple[int, int]:
        status = os.stat(path)
        return status.st_dev, status.st_ino

    outputs, sources = list(outputs), {identity(path): path for path in inputs}
    twice = next((path for path, count in Counter(outputs).items() if count > 1), None)
    if twice:
        raise ValueError(f'two images would both give {str(twice)!r}: run them separately')
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
    if '://' not in args.checkpoint and not os.path.isfile(args.checkpoint):
        raise MissingCheckpointError(f'checkpoint {args.checkpoint!r} does not exist')
    cfg = load_config(parser, args)
    scope = cfg.get('default_scope')
    if scope not in BUILDERS:
        raise ConfigError(f'default_scope of {args.config} is {scope!r}; allowed are {list(BUILDERS)}')
    init_default_scope(scope)
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = None  # pictures are written here
    test_set = next(leaf_datasets(cfg.test_dataloader.dataset), {}) if cfg.get('test_dataloader') else {}
    if not test_set.get('pipeline'):
        raise ConfigError(f'config {args.config!r} has no pipeline in test_dataloader.dataset, which prepares images')
    try:
        images = find_images(args.images, args.out_dir)
        files = {name: result_files(args.out_dir, name) for name in images}
        inputs = [path for path in (args.config, args.checkpoint, *images.values()) if os.path.isfile(path)]
        refuse_overwrites([path for found in files.values() for path in found], inputs, args.force)
        content = None if args.trust_checkpoint else read_trusted(args.checkpoint, cfg.model)
        with config_errors(args.config):
            pipeline = Pipeline(test_set.pipeline)
            plain = copy.deepcopy(cfg)
            # The libraries' inferencers, of which the model and the drawing are used, know their own loaders only.
            next(leaf_datasets(plain.test_dataloader.dataset)).pipeline = [
                dict(type='LoadImageFromFile'), dict(type=PACKING[scope])]
            model, interpret = BUILDERS[scope](plain, args.checkpoint, args.device or get_device(), args.score_thr)
        if content is not None:
            require_fit(model, content, args.checkpoint, least=1)
        if args.deploy:
            merge_model(model)
    except (OSError, ValueError) as error:
        hint = '' if not is_own_data_config(cfg) or cfg.get('classes') else (
            '\nThis config takes its classes from the training data, which is missing here: use the config that the '
            'training saved in its work folder, or --cfg-options classes=...')
        raise ValueError(f'nothing was started: {error}{hint}') from error

    broken: list[str] = []
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task('images', total=len(images))
        names = list(images)
        for start in range(0, len(names), args.batch_size):
            batch = {name: images[name] for name in names[start:start + args.batch_size]}
            for name, outcome in outcomes(batch, pipeline, model, interpret):
                if isinstance(outcome, Exception):
                    broken.append(f'{images[name]}: {" ".join(str(outcome).split())[:300] or type(outcome).__name__}')
                else:
                    write(files[name], outcome)
            progress.advance(task, len(batch))
    print(f'{len(images) - len(broken)} images: pictures in {args.out_dir / "pictures"}, predictions in '
          f'{args.out_dir / "predictions"}')
    if broken:
        print(f'{len(broken)} images have no prediction:\n' + '\n'.join(broken), file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
