# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Times training steps in alternating rounds, and measures their memory; needs no data.

classifiers   networks with cross entropy and AdamW, e.g. PartialNet beside timm's FasterNet
backbones     forward and backward pass of backbones that return the feature maps of four stages
detectors     whole configs of mmdet on random boxes: losses of all heads and the config's optimizer
resolutions   a classifier's config at each of its resolutions, beside a fixed one
data          training pipelines on photographs: where a worker's time goes, and how many workers feed the GPUs
memory        what an image of the pretraining keeps for the backward pass, and how many images cards take; counted

Weights and images are random. The peak is what a process needs for building the model and for two training steps:
weights, gradients, the optimizer's state and activations.
"""
import argparse
import copy
import ctypes
import functools
import gc
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from torch import nn

from partialnet_mm.analysis import data_pipeline, training_memory
from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.commands import add_machine_arguments, existing_file, positive
from partialnet_mm.analysis.measure import (
    describe_machine,
    kept_memory,
    markdown_table,
    peak_memory,
    progress,
    ratio,
    spread,
    time_in_rounds,
)
from partialnet_mm.analysis.peers import build_network, find_config
from partialnet_mm.config_types import type_name
from partialnet_mm.engine.hooks.train_resolution import PAPER_SIZES, TrainResolution
from partialnet_mm.engine.runners.config_file import read_config
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import PartialNet

#: What is appended to the name of a network, by the option that adds such rows, and the arguments of PartialNet.
FORMS = {
    'with_cp': {'+with_cp': dict(with_cp=True)},
    'norm_act': {'+norm_act': dict(with_cp='norm_act', train_folded=False)},
    'folded': {'+folded': dict(norm_eval=True, train_folded=True), '+plain': dict(norm_eval=True, train_folded=False)},
}
#: Appended to the name of a classifier whose step is compiled.
COMPILED = '+compiled'
SUFFIXES = {suffix: options for forms in FORMS.values() for suffix, options in forms.items()}
#: Objects per image: train2017 of COCO has 860001 on 118287 images.
OBJECTS = 7
#: Images, epochs and devices of COCO's 1x schedule, without images that have no object, and of the paper's pretraining.
COCO, IMAGENET = (117266, 12, 8), (1281167, 300, 8)

Size = tuple[int, int]
#: Trains a network for one step on images of a height and width.
Step = Callable[[Size], object]


def random_images(size: Size, args: argparse.Namespace) -> torch.Tensor:
    images = torch.randn(args.batch, 3, *size, device=args.device)
    return images.to(memory_format=torch.channels_last) if args.channels_last else images


def to_device(model: nn.Module, args: argparse.Namespace) -> nn.Module:
    model = model.to(args.device).train()
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def split_name(name: str) -> tuple[str, dict]:
    """The name of a network without what is appended, and the arguments of PartialNet for that."""
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), '')
    return name.removesuffix(suffix), SUFFIXES.get(suffix, {})


def build_backbone(name: str) -> nn.Module:
    """A backbone that returns the feature maps of four stages."""
    name, options = split_name(name)
    if name.startswith('partialnet_'):
        return PartialNet(name.removeprefix('partialnet_'), out_indices=(0, 1, 2, 3), **options)
    import timm
    stages = len(timm.create_model(name, features_only=True).feature_info)
    return timm.create_model(name, features_only=True, out_indices=tuple(range(stages - 4, stages)))


def train_classifier(name: str, args: argparse.Namespace) -> Step:
    model = to_device(build_network(name.removesuffix(COMPILED)), args)
    run = torch.compile(model) if name.endswith(COMPILED) else model
    labels = torch.arange(args.batch, device=args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = functools.cache(lambda size: random_images(size, args))

    def step(size: Size) -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss = F.cross_entropy(run(images(size)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def train_backbone(name: str, args: argparse.Namespace) -> Step:
    model = to_device(build_backbone(name), args)
    images = functools.cache(lambda size: random_images(size, args))

    def step(size: Size) -> None:
        model.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss = sum(out.float().mean() for out in model(images(size)))
        loss.backward()

    return step


def train_config(name: str, args: argparse.Namespace) -> Step:
    """The model and optimizer of a config of mmdet or mmpretrain."""
    name, options = split_name(name)
    cfg = read_config(str(find_config(name)))
    cfg.model.backbone.init_cfg = None
    cfg.model.backbone.update(options)
    model = revert_sync_batchnorm(build_model(cfg))
    model.init_weights()
    to_device(model, args)
    wrapper = cfg.optim_wrapper.copy()
    if args.device == 'cpu' and type_name(wrapper.get('type')) == 'AmpOptimWrapper':
        wrapper.type = 'OptimWrapper'
    optim_wrapper = build_optim_wrapper(model, wrapper)

    @functools.cache
    def batch(size: Size) -> dict:
        if cfg.default_scope == 'mmpretrain':
            from mmpretrain.structures import DataSample
            classes = cfg.model.head.num_classes
            samples = [DataSample().set_gt_label(index % classes) for index in range(args.batch)]
            return dict(inputs=torch.randint(256, (args.batch, 3, *size), dtype=torch.uint8), data_samples=samples)
        from mmdet.testing import demo_mm_inputs
        head = cfg.model.get('roi_head', cfg.model).get('bbox_head', {})
        classes = (head[0] if isinstance(head, (list, tuple)) else head).get('num_classes', 80)
        return demo_mm_inputs(args.batch, [(3, *size)] * args.batch, [OBJECTS] * args.batch, num_classes=classes,
                              with_mask=True, device=args.device)

    # Preprocessors may write into what they are given.
    return lambda size: model.train_step(copy.deepcopy(batch(size)), optim_wrapper)


TRAIN = dict(classifiers=train_classifier, backbones=train_backbone, detectors=train_config, resolutions=train_config,
             data=train_config)


def build_step(name: str, args: argparse.Namespace) -> Step:
    torch.manual_seed(0)
    return TRAIN[args.command](name, args)


def measure_peak(name: str, args: argparse.Namespace) -> int:
    """Bytes for building a network and training it for two steps."""
    build_step(name, args)(args.size)  # imports modules and loads libraries, which are not counted
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):  # otherwise what is freed stays with the process, and its use would not show
        libc.malloc_trim(0)

    def train() -> None:
        step = build_step(name, args)
        step(args.size)
        step(args.size)  # with the optimizer's state

    return peak_memory(train)


def peak_in_own_process(name: str) -> float | None:
    """MiB that :func:`measure_peak` prints in a process that has done nothing before; None if it cannot."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], f'--memory-of={name}'], stdout=subprocess.PIPE,
                          text=True)
    return int(done.stdout.split()[-1]) / 2**20 if done.returncode == 0 else None


def print_networks(args: argparse.Namespace) -> None:
    """A row per network: time over the last one's, and peak memory."""
    peaks = {name: peak_in_own_process(name) for name in progress(args.networks, 'peak memory')}
    steps = {name: build_step(name, args) for name in progress(args.networks, 'building')}
    times = time_in_rounds({name: (lambda step=step: step(args.size)) for name, step in steps.items()}, args.rounds)
    last = args.networks[-1]
    headings = ['network', 's per step (quartiles)', 'images/s', f'time over {label(last)} (quartiles)',
                'peak memory (MiB)']
    rows = [[label(name), spread(times[name]).text(3), f'{args.batch / statistics.median(times[name]):.1f}',
             ratio(times, name, last).text(), 'not measured' if peaks[name] is None else f'{peaks[name]:.0f}']
            for name in args.networks]
    if args.command == 'backbones':
        headings.append('kept for the backward pass (MiB)')
        for row, name in zip(rows, args.networks):
            kept = kept_memory(to_device(build_backbone(name), args), random_images(args.size, args))
            row.append(f'{kept / 2**20:.1f}')
    print(f'batch {args.batch}, {args.size[0]} x {args.size[1]}\n\n{markdown_table(headings, rows)}')
    print_schedule({label(name): statistics.median(times[name]) for name in args.networks}, args)


def label(name: str) -> str:
    path = Path(split_name(name)[0])
    return f'{path.parent.name}/{path.stem}{name[len(str(path)):]}' if path.suffix == '.py' else name


def print_resolutions(args: argparse.Namespace) -> None:
    """A row per resolution, one for drawing among them, one for the fixed resolution."""
    step, = (build_step(name, args) for name in args.networks)
    fixed, sizes = args.fixed, args.resolutions
    functions = {size: (lambda size=size: step((size, size))) for size in (fixed, *sizes)}
    times = time_in_rounds(functions, args.rounds)
    times['drawn'] = [statistics.mean(seconds) for seconds in zip(*(times[size] for size in sizes))]
    pixels = {size: (size / fixed)**2 for size in sizes}
    pixels |= {'drawn': statistics.mean(pixels.values()), f'fixed {fixed}': 1}
    times[f'fixed {fixed}'] = times[fixed]
    rows = [[name, f'{relative:.2f}', f'{args.batch / statistics.median(times[name]):.1f}',
             ratio(times, name, fixed).text()] for name, relative in pixels.items()]
    print(f'batch {args.batch}; pixels and times over those of {fixed}\n\n'
          + markdown_table(['resolution', 'pixels', 'images/s', 'time (quartiles)'], rows))
    print_schedule({'drawn': statistics.median(times['drawn'])}, args)


def print_schedule(seconds: dict[str, float], args: argparse.Namespace) -> None:
    if args.schedule:
        images, epochs, devices = args.schedule
        steps = math.ceil(images / (devices * args.batch)) * epochs
        print(f'\narithmetic, not measured: {images} images / ({devices} devices x {args.batch}) x {epochs} epochs = '
              f'{steps} steps; without reading data, exchanging gradients and validation')
        for name, second in seconds.items():
            print(f'  {name}: {steps} x {second:.3f} s / 3600 = {steps * second / 3600:.1f} h on {devices} devices '
                  'like this one')


def measured_rates(args: argparse.Namespace) -> dict[Path, float]:
    """Images per second that this device trains, for each config at its sizes."""
    torch.set_num_threads(args.threads)
    args.batch, args.channels_last, rates = args.step_batch, False, {}
    for config in args.configs:
        step = build_step(str(config), args)
        sides = args.sizes or data_pipeline.resolutions_of(read_config(str(config)))
        sizes = [(side, side) for side in sides] or [(800, 1333)]
        times = time_in_rounds({size: functools.partial(step, size) for size in sizes}, args.rounds)
        rates[config] = args.batch / statistics.mean(statistics.median(times[size]) for size in sizes)
    return rates


def sizes_of(config: Path) -> Sequence[int]:
    """The sizes that the config's TrainResolutionHook draws from, those of the paper where it names none."""
    hooks = read_config(config).get('custom_hooks') or ()
    found = [hook['sizes'] for hook in hooks if type_name(hook['type']) == 'TrainResolutionHook' and 'sizes' in hook]
    return found[0] if found else PAPER_SIZES


def parse_args() -> argparse.Namespace:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)

    def add(name: str, batch: int, size: Size, schedule: tuple | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(name)
        add_machine_arguments(command, rounds=5)
        command.add_argument('--batch', type=positive, default=batch, help='images per step (default: %(default)s)')
        command.add_argument('--channels-last', action='store_true', help='memory format of network and images')
        command.add_argument('--schedule', type=positive, nargs=3, metavar=('IMAGES', 'EPOCHS', 'DEVICES'),
                             default=schedule, help='print the hours of this schedule, which is arithmetic')
        command.add_argument('--memory-of', help=argparse.SUPPRESS)  # what one of the processes for memory is for
        if name == 'resolutions':
            command.set_defaults(size=size)
            return command
        command.add_argument('--size', type=positive, nargs=2, metavar=('H', 'W'), default=size,
                             help=f'of the images (default: {size[0]} {size[1]})')
        return command

    def forms(command: argparse.ArgumentParser) -> None:
        for option, added in FORMS.items():
            also = ' and with '.join(', '.join(f'{key}={value!r}' for key, value in options.items())
                                     for options in added.values())
            command.add_argument(f'--{option.replace("_", "-")}', action='store_true',
                                 help=f'also measure each PartialNet with {also}')

    names = 'partialnet_ARCH or a name of timm; times are compared with the last (default: %(default)s)'
    command = add('classifiers', 32, (224, 224))
    command.add_argument('networks', nargs='*', default=['partialnet_t2', 'fasternet_t2'], help=names)
    command.add_argument('--bf16', action='store_true', help='autocast to bfloat16')
    command.add_argument('--compile', action='store_true',
                         help='also measure each network compiled by torch.compile, which takes minutes')
    command = add('backbones', 1, (800, 1344))
    command.add_argument('networks', nargs='*', default=['partialnet_s', 'fasternet_s', 'resnet50'], help=names)
    command.add_argument('--bf16', action='store_true', help='autocast to bfloat16')
    forms(command)
    command = add('detectors', 2, (800, 1333), COCO)
    command.add_argument('networks', nargs='+', metavar='CONFIG', help='config of mmdet, a file or mmdet:CONFIG '
                         'for one that mmdet ships; times are compared with the last')
    forms(command)
    command = add('resolutions', 32, (224, 224), IMAGENET)
    command.add_argument('networks', nargs=1, type=existing_file, metavar='CONFIG', help='config of a classifier')
    command.add_argument('--sizes', type=int, nargs='+', help="sizes that are drawn from (default: the config's)")
    command.add_argument('--fixed', type=int, default=224, help='size that they are compared with (default: 224)')
    training_memory.add_arguments(commands.add_parser('memory'))
    data_pipeline.add_arguments(commands.add_parser('data'))

    args = parser.parse_args()
    try:
        if args.command == 'data':
            args.report = data_pipeline.report(args, measured_rates(args) if args.step_batch else {})
        elif args.command == 'memory':
            training_memory.check(args)
        else:
            check(args)
    except ValueError as error:
        commands.choices[args.command].error(str(error))
    return args


def check(args: argparse.Namespace) -> None:
    """Raises a ValueError for what would fail later; completes the networks."""
    args.networks, args.size = list(map(str, args.networks)), tuple(args.size)
    if args.command == 'resolutions':
        args.resolutions = TrainResolution(args.sizes or sizes_of(args.networks[0])).sizes
        TrainResolution([args.fixed])
    for name in args.networks:
        if args.command == 'detectors':
            scope = read_config(str(find_config(name))).get('default_scope')
            if scope != 'mmdet':
                raise ValueError(f'{name} is not a config of mmdet: its default_scope is {scope!r}')
        elif args.command != 'resolutions':
            import timm
            if name not in [f'partialnet_{arch}' for arch in PartialNet.arch_settings] and not timm.is_model(name):
                raise ValueError(f'there is no network {name!r}: allowed are partialnet_ARCH with ARCH one of '
                                 f'{", ".join(PartialNet.arch_settings)}, and the names of timm')
    suffixes = [suffix for option, forms in FORMS.items() if getattr(args, option, False) for suffix in forms]
    if getattr(args, 'compile', False):
        args.networks = [f'{name}{COMPILED}' for name in args.networks] + args.networks
    if suffixes:
        ours = [name for name in args.networks if name.startswith('partialnet_') or (
            name.endswith('.py')
            and type_name(read_config(str(find_config(name))).model.backbone.type) == 'PartialNet')]
        args.networks = [f'{name}{suffix}' for name in ours for suffix in suffixes] + args.networks


@command
def main() -> None:
    MMLogger.get_instance('benchmark_training', log_level='WARNING')  # no report of each initialized weight
    args = parse_args()
    if args.command == 'data':
        print(f'{describe_machine("cpu")}, {args.rounds} alternating rounds\n\n{args.report}')
        return
    if args.command == 'memory':
        print(training_memory.report(args))
        return
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(measure_peak(args.memory_of, args))
        return
    print(f'{describe_machine(args.device)}, {args.rounds} alternating rounds')
    if args.command == 'resolutions':
        print_resolutions(args)
    else:
        print_networks(args)


if __name__ == '__main__':
    main()
