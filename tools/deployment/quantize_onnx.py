# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Quantizes the ONNX file of a whole model to INT8 for onnxruntime, and measures what that costs and gains.

The ranges of the activations come from images of the config's training data, which the config's test pipeline prepares.
The command then prints the metrics of both files on the config's test data, the ratio of their latencies on one thread,
and the layers whose output changes most when they alone are in 8 bits. Such layers can stay in float32
(--float-layers).
"""
import argparse
import copy
import json
import math
import os
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmengine.config import Config
from rich.console import Console

from partialnet_mm.analysis.commands import positive
from partialnet_mm.analysis.measure import markdown_table, ratio, time_in_rounds
from partialnet_mm.checkpoint.atomic import refuse_overwrite, write_atomically
from partialnet_mm.deploy.evaluation import OnnxPredictions, calibration_images, evaluate
from partialnet_mm.deploy.onnx_export import require_onnx
from partialnet_mm.engine.runners.command_line import KeyValues, load_config
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.preflight import leaf_datasets

if TYPE_CHECKING:
    import onnx

#: Images that the error of each layer is measured on.
ERROR_IMAGES = 4


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='ONNX file of a whole model, by tools/deployment/export_onnx.py')
    parser.add_argument('--config', required=True, help='config that the model was exported with')
    parser.add_argument('--cfg-options', nargs='+', action=KeyValues, metavar='KEY=VALUE',
                        help='changes to the config, e.g. data_root=data/mine')
    parser.add_argument('--images', type=positive, default=64, metavar='N',
                        help='images to calibrate with (default: 64)')
    parser.add_argument('--split', choices=['train', 'test'], default='train',
                        help='data of the config that these images are drawn from (default: train)')
    parser.add_argument('--output', required=True, metavar='FILE', help='the INT8 file; its folder must exist')
    parser.add_argument('--float-layers', nargs='+', default=[], metavar='NAME',
                        help='layers that stay in float32, by the names that this command prints')
    parser.add_argument('--worst', type=positive, default=10, metavar='N', help='layers to name (default: 10)')
    parser.add_argument('--full-range', action='store_true',
                        help='weights of 8 instead of 7 bits, for processors with VNNI or ARM only: others saturate')
    parser.add_argument('--test-images', type=positive, metavar='N',
                        help='test images to measure the metrics on (default: all)')
    parser.add_argument('--rounds', type=positive, default=21, metavar='N',
                        help='alternating rounds of both files for the latency (default: 21)')
    parser.add_argument('--profile', action='store_true',
                        help='also print the time of each kind of operator in the INT8 file')
    parser.add_argument('--force', action='store_true', help='overwrite the file if it exists')
    return parser, parser.parse_args()


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command for what could not be done, before anything is computed."""
    if not os.path.isfile(args.model):
        parser.error(f'model {args.model!r} does not exist')
    folder = os.path.dirname(os.path.abspath(args.output))
    if not os.path.isdir(folder):
        parser.error(f'--output: the folder {folder!r} does not exist')
    try:
        refuse_overwrite(args.output, [args.model, args.config], args.force)
        require_onnx()
    except (ImportError, ValueError) as error:
        parser.error(str(error))


def read_model(path: str) -> 'onnx.ModelProto':
    """The model of an ONNX file that is not yet quantized.

    Raises:
        ValueError: If the file has none, or operators in 8 bits.
    """
    import onnx  # after require_onnx, which reports a missing package
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # those of protobuf and of onnx
        raise ValueError(f'{path!r} is no valid ONNX file: {error}') from error
    quantized = next((node.op_type for node in model.graph.node if 'Quantize' in node.op_type
                      or node.op_type.startswith('QLinear')), None)
    if quantized is not None:
        raise ValueError(f'{path!r} is quantized already: it has the operator {quantized}')
    return model


def with_calibration_data(cfg: Config, split: str) -> Config:
    """A config whose test images are drawn at random from the data of a split, prepared by the test pipeline."""
    loader = f'{split}_dataloader'
    for name in (loader, 'test_dataloader', 'test_evaluator'):
        if not cfg.get(name):
            raise ValueError(f'the config has no {name}')
    cfg = copy.deepcopy(cfg)
    dataset = next(leaf_datasets(cfg[loader].dataset))
    dataset.pipeline = next(leaf_datasets(cfg.test_dataloader.dataset)).pipeline
    sampler = dict(type='DefaultSampler', shuffle=True, seed=0)
    cfg.test_dataloader = dict(dataset=dataset, sampler=sampler, collate_fn=cfg.test_dataloader.get('collate_fn')
                               or dict(type='pseudo_collate'))
    return cfg


def time_both(models: 'Mapping[str, onnx.ModelProto]', images: Mapping[str, np.ndarray], rounds: int) -> str:
    """The ratio of the latencies of two models on one image and one thread, median and quartiles."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {name: onnxruntime.InferenceSession(model.SerializeToString(), options,
                                                   providers=['CPUExecutionProvider'])
                for name, model in models.items()}
    times = time_in_rounds({name: lambda session=session: session.run(None, dict(images))
                            for name, session in sessions.items()}, rounds)
    float32, int8 = models
    return ratio(times, int8, float32).text(3)


def profile(model: 'onnx.ModelProto', images: Mapping[str, np.ndarray], runs: int) -> list[tuple[str, int, float]]:
    """Operators of a model with their numbers of nodes and milliseconds of one run on one thread, the slowest first."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / 'profile')
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
        for _ in range(runs):
            session.run(None, dict(images))
        events = json.loads(Path(session.end_profiling()).read_text())
    microseconds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event['cat'] == 'Node' and event['name'].endswith('_kernel_time'):
            microseconds[event['args']['op_name'], event['name']].append(event['dur'])
    nodes, times = Counter(), Counter()
    for (operator, _), found in microseconds.items():
        nodes[operator] += 1
        times[operator] += statistics.median(found) / 1e3
    return [(operator, nodes[operator], time) for operator, time in times.most_common()]


@command
def main() -> None:
    parser, args = parse_args()
    check_args(parser, args)
    from partialnet_mm.deploy.quantization import Quantizer
    cfg = load_config(parser, args)
    log = Console(stderr=True)
    model = read_model(args.model)
    calibration = with_calibration_data(cfg, args.split)
    measure = OnnxPredictions(model)
    with log.status('calibrating'):
        images = list(calibration_images(calibration, args.images))
        quantizer = Quantizer(model, images, not args.full_range)
    quantized = quantizer.quantized(args.float_layers)
    with log.status('measuring layers'):
        errors = quantizer.layer_errors(images[:ERROR_IMAGES])
    models = {'float32': model, 'INT8': quantized}
    with log.status('measuring float32'):
        metrics = {'float32': evaluate(measure, cfg, args.test_images)}
    with log.status('measuring INT8'):
        metrics['INT8'] = evaluate(OnnxPredictions(quantized), cfg, args.test_images)

    content = quantized.SerializeToString()
    write_atomically(content, args.output)
    rows = [[name, f'{value:.4f}', f'{metrics["INT8"][name]:.4f}', f'{metrics["INT8"][name] - value:+.4f}']
            for name, value in metrics['float32'].items()]
    print(markdown_table(['metric', 'float32', 'INT8', 'difference'], rows))
    size = ' x '.join(map(str, images[0]['images'].shape[1:3]))
    print(f'\nlatency of one image of {size} on one thread, INT8 over float32: '
          f'{time_both(models, images[0], args.rounds)} (median, quartiles)\n')
    print(markdown_table(
        ['layer', 'error in dB of its output'],
        [[name, f'{10 * math.log10(error):.1f}' if error else 'none'] for name, error in errors.items()
         if name not in args.float_layers][:args.worst]))
    if args.profile:
        found = profile(quantized, images[0], args.rounds)
        whole = sum(time for *_, time in found)
        print('\n' + markdown_table(['operator', 'nodes', 'share of the time'],
                                    [[name, count, f'{time / whole:.1%}'] for name, count, time in found]))
    mebibytes = [size / 2**20 for size in (len(content), os.path.getsize(args.model))]
    print(f'\n{args.output}: {mebibytes[0]:.1f} MiB (float32: {mebibytes[1]:.1f} MiB), '
          f'{len(quantizer.layers) - len(set(args.float_layers))} of {len(quantizer.layers)} layers in INT8, '
          f'calibrated with {len(images)} images')


if __name__ == '__main__':
    main()
