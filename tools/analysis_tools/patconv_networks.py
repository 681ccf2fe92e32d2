# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Prints Table 5 of the paper as Markdown: networks with their own spatial convolutions and with PATConv.

Parameters and multiply-adds are counted; --latency times both in turns, their norms merged; --profile says which
layers the time goes to.
"""
import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from rich.console import Console
from rich.progress import track
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.flops import count_multiply_adds, multiply_adds_by_layer
from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns
from partialnet_mm.models import PATConv2d, merge_following_norms, merge_model
from partialnet_mm.models.patconv2d.layer import CONVS, is_replaceable

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'patconv'
# Table 5: images a second on a V100, original and PATConv.
PAPER = {'ResNet-50': ('resnet50', 1258, 2832), 'MobileNetV2': ('mobilenet_v2', 3924, 4560),
         'ConvNeXt-T': ('convnext_t', 902, 1123)}
KINDS = ('1x1 and linear', 'spatial, equal width', 'stem and changes of width', 'PATConv, convolved part',
         'PATConv, the rest', 'all else')


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=list(PAPER), default=list(PAPER))
    parser.add_argument('--conv', nargs='+', choices=CONVS, default=list(CONVS),
                        help="convolved part of PATConv; 'dense' is the paper's (default: both)")
    parser.add_argument('--latency', action='store_true', help='time the networks')
    parser.add_argument('--profile', action='store_true', help='time their layers, on the CPU')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--batch', type=int, default=1, help='images a pass (default: 1)')
    parser.add_argument('--size', type=int, default=224, help='height and width of the images (default: 224)')
    parser.add_argument('--threads', type=int, default=1, help='threads on the CPU (default: 1)')
    parser.add_argument('--rounds', type=int, default=21, help='timed passes of each network (default: 21)')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU')
    if args.device == 'cuda' and args.profile:
        parser.error('--profile times layers on the CPU')
    for name in ('batch', 'size', 'threads', 'rounds'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be positive, got {getattr(args, name)}')
    return parser, args


def build(network: str, conv: str | None = None) -> nn.Module:
    """A network of configs/patconv, with random weights: with PATConv of a kind, or the original."""
    cfg = Config.fromfile(CONFIGS / f'{PAPER[network][0]}_patconv_in1k.py')
    backbone = cfg.model.backbone
    if backbone.type == 'PATConvNeXt':
        if conv is None:
            backbone.type = 'ConvNeXt'
        else:
            backbone.patconv_cfg = dict(conv=conv)
    elif conv is None:
        del backbone.conv_cfg
    else:
        backbone.conv_cfg.conv = conv
    cfg.model.train_cfg = None  # no batch augmentation: it is a forward pass that is counted
    return build_model(cfg).eval()


def merge(model: nn.Module) -> nn.Module:
    """The fastest form that computes the same: all norms that follow a convolution or PATConv are part of it."""
    if any(isinstance(module, PATConv2d) for module in model.modules()):
        merge_model(model)
        merge_following_norms(model)
    return fuse_conv_bn(model)


def print_counts(args: argparse.Namespace) -> None:
    print(f'| network | convolved part | Params (M) | with PATConv | multiply-adds (G), {args.size} x {args.size} | '
          'with PATConv | ratio |\n|---|---|---|---|---|---|---|')
    shape = (1, 3, args.size, args.size)
    for network in args.networks:
        # On the device 'meta' nothing is computed, and all is counted.
        original = build(network).to('meta')
        params, counts = sum(p.numel() for p in original.parameters()), count_multiply_adds(original, shape)
        for conv in args.conv:
            model = build(network, conv)
            own_params = sum(p.numel() for p in model.parameters())
            own_counts = count_multiply_adds(merge(model).to('meta'), shape)
            print(f'| {network} | {conv} | {params / 1e6:.2f} | {own_params / 1e6:.2f} | {counts / 1e9:.3f} | '
                  f'{own_counts / 1e9:.3f} | {counts / own_counts:.2f} |')


def print_times(args: argparse.Namespace) -> None:
    header = '| network | convolved part | original (images/s) | with PATConv | ratio (quartiles) | paper, V100 |'
    print(f'{header}\n|---|---|---|---|---|---|')
    x = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    for network in track(args.networks, description='timing', console=Console(stderr=True)):
        _, before, after = PAPER[network]
        models = {'original': merge(build(network)), **{conv: merge(build(network, conv)) for conv in args.conv}}
        passes = {name: (lambda model=model.to(args.device): model(x)) for name, model in models.items()}
        with torch.inference_mode():
            times = time_in_turns(passes, args.rounds, warmup=3)
        speed = {name: args.batch / statistics.median(seconds) for name, seconds in times.items()}
        for conv in args.conv:
            ratio = ratio_in_turns(times, 'original', conv)
            print(f'| {network} | {conv} | {speed["original"]:.1f} | {speed[conv]:.1f} | {ratio["median"]:.2f} '
                  f'({ratio["low"]:.2f}-{ratio["high"]:.2f}) | {after / before:.2f} |')


def kinds_of_layers(model: nn.Module) -> dict[str, str]:
    """The kind of each layer that does the work, by name; a PATConv comes before what is inside of it."""
    kinds = {}
    for name, module in model.named_modules():
        if isinstance(module, PATConv2d):
            kinds[name] = 'PATConv, the rest'
        elif name.endswith('.conv') and kinds.get(name[:-len('.conv')]) == 'PATConv, the rest':
            kinds[name] = 'PATConv, convolved part'
        elif any(name.startswith(f'{other}.') for other, kind in kinds.items() if kind == 'PATConv, the rest'):
            continue
        elif isinstance(module, nn.Linear) or isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            kinds[name] = '1x1 and linear'
        elif isinstance(module, nn.Conv2d):
            replaceable = is_replaceable(module.in_channels, module.out_channels, module.kernel_size)
            kinds[name] = 'spatial, equal width' if replaceable else 'stem and changes of width'
    return kinds


def shares(model: nn.Module, args: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the multiply-adds and of the time of each kind of layer."""
    kinds = kinds_of_layers(model)
    x = torch.randn(args.batch, 3, args.size, args.size)
    counts: dict[str, float] = defaultdict(float)
    for name, count in multiply_adds_by_layer(model, lambda: model(x)).items():
        owner = max((layer for layer in kinds if name == layer or name.startswith(f'{layer}.')), key=len, default='')
        counts[kinds.get(owner, 'all else')] += count

    # Layers are timed within whole passes, so that what interrupts the process hits all by their length.
    seconds: dict[str, float] = defaultdict(float)
    handles = []
    for name, layer in [('', model), *((name, model.get_submodule(name)) for name in kinds)]:
        starts: list[float] = []

        def start(*_: object, starts: list[float] = starts) -> None:
            starts.append(time.perf_counter())

        def stop(*_: object, starts: list[float] = starts, name: str = name) -> None:
            seconds[name] += time.perf_counter() - starts.pop()

        handles += [layer.register_forward_pre_hook(start), layer.register_forward_hook(stop)]
    with torch.inference_mode():
        for _ in range(3):
            model(x)
        seconds.clear()
        for _ in range(args.rounds):
            model(x)
    for handle in handles:
        handle.remove()
    times: dict[str, float] = defaultdict(float)
    for name, kind in kinds.items():
        times[kind] += seconds[name]
    times['PATConv, the rest'] -= times['PATConv, convolved part']
    times['all else'] = seconds[''] - sum(times.values())
    return ({kind: counts[kind] / sum(counts.values()) for kind in KINDS},
            {kind: times[kind] / seconds[''] for kind in KINDS})


def print_profiles(args: argparse.Namespace) -> None:
    columns = ' | '.join(KINDS)
    print(f'| network | share of | {columns} |\n|---|---{"|---" * len(KINDS)}|')
    for network in args.networks:
        for conv in (None, *args.conv):
            name = f'{network}, PATConv {conv}' if conv else network
            counts, times = shares(merge(build(network, conv)), args)
            for what, values in (('multiply-adds', counts), ('time', times)):
                cells = ' | '.join(f'{value:.0%}' for value in values.values())
                print(f'| {name} | {what} | {cells} |')
            if conv is None:
                bound = 1 / (1 - times['spatial, equal width'])
                print(f'| {network} | ratio if its spatial convolutions took no time | {bound:.2f} '
                      f'{"| " * (len(KINDS) - 1)}|')


def main() -> None:
    _, args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print_counts(args)
    if args.latency:
        print(f'\n{args.device}, {args.threads} thread(s), batch {args.batch}, {args.rounds} rounds in turns, norms '
              f'merged, torch {torch.__version__}\n')
        print_times(args)
    if args.profile:
        print('\nOf one pass, on the CPU:\n')
        print_profiles(args)


if __name__ == '__main__':
    main()
