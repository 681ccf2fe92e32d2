# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Times backbones on images of detection, training and inference, and takes their peak memory; whole detectors too.

Backbones return the maps of all four stages. Inference is with batch norms merged, a training step is forward and
backward pass. They run in turns; memory is what one pass needs beyond the network that waits for it, in a process of
its own. Detectors run whole: preprocessing, network and post-processing, on drawn images, with random weights.
"""
import argparse
import copy
import ctypes
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.machine import describe_machine
from partialnet_mm.analysis.peak_memory import peak_memory
from partialnet_mm.analysis.peers import merge_network
from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns
from partialnet_mm.models import PartialNet
from partialnet_mm.zoo import config_path

NETWORKS = ('partialnet_s', 'fasternet_s', 'partialnet_l', 'fasternet_l', 'resnet50')
WORK = ('inference', 'training')
#: Sides of the images that a network is tried with first.
SMALL = (64, 64)

Pass = Callable[[], object]


def build(name: str) -> nn.Module:
    """A backbone that returns four maps, with random weights, in training mode."""
    torch.manual_seed(0)
    if name.startswith('partialnet_'):
        return PartialNet(name[len('partialnet_'):], out_indices=(0, 1, 2, 3)).train()
    model = timm.create_model(name, features_only=True)
    stages = len(model.feature_info)
    return timm.create_model(name, features_only=True, out_indices=tuple(range(stages - 4, stages))).train()


def make_pass(model: nn.Module, work: str, images: torch.Tensor) -> Pass:
    """One forward pass, or one forward and backward pass."""

    def infer() -> None:
        with torch.inference_mode():
            model(images)

    def train() -> None:
        model.zero_grad()
        sum(out.mean() for out in model(images)).backward()

    return train if work == 'training' else infer


def prepare(name: str, work: str, batch: int, args: argparse.Namespace) -> tuple[Pass, Pass]:
    """A pass on images of the size asked for, and one on small images."""
    model = build(name)
    if work == 'inference':
        merge_network(model.eval(), SMALL)
    model.to(args.device)
    torch.manual_seed(1)
    large, small = (torch.randn(batch, 3, *size, device=args.device) for size in (args.size, SMALL))
    if args.channels_last:
        model, large = model.to(memory_format=torch.channels_last), large.to(memory_format=torch.channels_last)
    return make_pass(model, work, large), make_pass(model, work, small)


def memory_of(name: str, work: str, batch: int, args: argparse.Namespace) -> int:
    """Bytes that a pass needs beyond the network and its images; for a process of its own."""
    torch.set_num_threads(args.threads)
    run, run_small = prepare(name, work, batch, args)
    run_small()  # what the first pass loads is not what a pass needs
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):  # what merging has freed goes back to the system, or a pass would use it unseen
        libc.malloc_trim(0)
    return peak_memory(run)


def in_own_process(function: Callable, *args: object) -> object:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def print_backbones(args: argparse.Namespace) -> None:
    console = Console(stderr=True)
    cases = [(work, batch) for work in args.work for batch in args.batch]
    wanted = [(name, work, batch) for work, batch in cases for name in args.networks]
    memory = {case: in_own_process(memory_of, *case, args) for case in
              track(wanted, description='memory', console=console)}
    print('| backbone | images | | s (quartiles) | over '
          f'{args.reference} | over FasterNet of its size | peak memory (MiB) | over {args.reference} |\n'
          '|---|---|---|---|---|---|---|---|')
    for work, batch in track(cases, description='timing', console=console):
        times = time_in_turns({name: prepare(name, work, batch, args)[0] for name in args.networks}, args.rounds)
        one = [1.] * args.rounds
        for name in args.networks:
            peer = name.replace('partialnet_', 'fasternet_')
            seconds = spread(ratio_in_turns({'mine': times[name], 'one': one}, 'mine', 'one'))
            over_peer = spread(ratio_in_turns(times, name, peer)) if peer != name and peer in times else ''
            over_memory = memory[name, work, batch] / memory[args.reference, work, batch]
            print(f'| {name} | {batch} x {args.size[0]} x {args.size[1]} | {work} | {seconds} | '
                  f'{spread(ratio_in_turns(times, name, args.reference))} | {over_peer} | '
                  f'{memory[name, work, batch] / 2**20:.0f} | {over_memory:.2f} |')


def spread(ratio: dict[str, float]) -> str:
    return f'{ratio["median"]:.3f} ({ratio["low"]:.3f}-{ratio["high"]:.3f})'


def build_detector(config: Path, args: argparse.Namespace) -> nn.Module:
    """A detector of a config with random weights, the norms of its backbone merged."""
    cfg = Config.fromfile(config)
    if cfg.get('default_scope') != 'mmdet':
        raise ValueError(f'{config} is not a config of mmdet: its default_scope is {cfg.get("default_scope")!r}')
    cfg.model.backbone.init_cfg = None
    if args.score_thr is not None:
        test_cfg = cfg.model.test_cfg
        test_cfg.get('rcnn', test_cfg).score_thr = args.score_thr
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    model.eval()
    merge_network(model.backbone, SMALL)
    return model.to(args.device)


def print_detectors(args: argparse.Namespace) -> None:
    from mmdet.testing import demo_mm_inputs
    console = Console(stderr=True)
    MMLogger.get_instance('dense_cost', log_level='WARNING')  # how each weight was initialized is not asked for
    models = {f'{path.parent.name}/{path.stem}': build_detector(path, args) for path in
              track(args.detectors, description='building detectors', console=console)}
    last = list(models)[-1]
    print(f'\n| detector | images | images/s | time over {last} (quartiles) | detections an image |\n'
          '|---|---|---|---|---|')
    for batch in track(args.batch, description='timing detectors', console=console):
        data = demo_mm_inputs(batch, [(3, *args.size)] * batch, device=args.device)
        found: dict[str, list[int]] = {}

        def detect(name: str, data: dict = data, found: dict[str, list[int]] = found) -> None:
            # a copy, since rescaling writes into what it is given
            with torch.inference_mode():
                found[name] = [len(sample.pred_instances) for sample in models[name].test_step(copy.deepcopy(data))]

        times = time_in_turns({name: (lambda name=name: detect(name)) for name in models}, args.rounds)
        for name in models:
            print(f'| {name} | {batch} x {args.size[0]} x {args.size[1]} | '
                  f'{batch / statistics.median(times[name]):.2f} | {spread(ratio_in_turns(times, name, last))} | '
                  f'{statistics.mean(found[name]):.0f} |')


def default_detectors() -> tuple[Path, ...]:
    """PartialNet-S's Mask R-CNN, and the one of ResNet-50 that mmdet ships."""
    package = Path(find_spec('mmdet').origin).parent
    return (Path(config_path('mask_rcnn/partialnet_s_1x.py')),
            package / '.mim' / 'configs' / 'mask_rcnn' / 'mask-rcnn_r50_fpn_1x_coco.py')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', default=list(NETWORKS),
                        help=f'partialnet_ARCH, or a name of timm (default: {" ".join(NETWORKS)})')
    parser.add_argument('--reference', default='resnet50', help='backbone that all are compared with, measured too '
                        'where it is not named (default: resnet50)')
    parser.add_argument('--work', nargs='+', choices=WORK, default=list(WORK), help='(default: both)')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 2], help='images a pass (default: 1 2)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), default=[800, 1344],
                        help='of the images (default: 800 1344, as in Mask R-CNN)')
    parser.add_argument('--detectors', nargs='*', type=Path, metavar='CONFIG',
                        help='time these configs of mmdet too, in turns, over the last; without any: Mask R-CNN with '
                        "PartialNet-S and mmdet's with ResNet-50")
    parser.add_argument('--only-detectors', action='store_true', help='leave the backbones out')
    parser.add_argument('--score-thr', type=float, help="of a detection (default: the configs'); the more detections, "
                        'the more time goes to masks, at most 100 an image')
    parser.add_argument('--rounds', type=int, default=5, help='timed passes of each (default: 5)')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='threads on the CPU')
    parser.add_argument('--channels-last', action='store_true', help='memory format of backbones and images')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    for name in ('rounds', 'threads'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    if min(args.batch) < 1 or min(args.size) < SMALL[0]:
        parser.error(f'--batch must be at least 1 and --size at least {SMALL[0]}, got {args.batch} and {args.size}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU')
    args.networks = list(dict.fromkeys([*args.networks, args.reference]))
    for name in args.networks:
        if name not in [f'partialnet_{arch}' for arch in PartialNet.arch_settings] and not timm.is_model(name):
            parser.error(f'there is no backbone {name!r}: allowed are partialnet_ARCH with ARCH one of '
                         f'{", ".join(PartialNet.arch_settings)}, and the names of timm')
    if args.only_detectors and args.detectors is None:
        args.detectors = []
    if args.detectors is not None:
        if find_spec('mmdet') is None:
            parser.error('--detectors needs mmdet, which is not installed')
        args.detectors = args.detectors or default_detectors()
        for path in args.detectors:
            if not path.is_file():
                parser.error(f'config {str(path)!r} does not exist')
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(f'{describe_machine(args.device)}, {args.rounds} rounds in turns\n')
    if not args.only_detectors:
        print_backbones(args)
    if args.detectors:
        print_detectors(args)


if __name__ == '__main__':
    main()
