# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Prints how far networks are from what a CPU can do, and where their time goes, as Markdown.

The limit is the time of the matrix products alone, of the same shapes and with
weights of the same size: one for each convolution and linear layer, its patches
laid out already. Norms are merged, and products and network run in turns.
"""
import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from partialnet_mm.analysis.machine import describe_machine
from partialnet_mm.analysis.peers import build_network, check_name, merge_network
from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns

VARIANTS = ('t0', 't1', 't2', 's', 'm', 'l')
# Groups of PyTorch's operators, by the beginning of their names; what runs between them is Python's.
GROUPS = {
    'products': ('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm', 'aten::addmv', 'aten::_slow_conv2d_forward'),
    'convolutions': ('aten::mkldnn_convolution', 'aten::_conv_depthwise2d'),
    'attention': ('aten::_scaled_dot_product', ),
    'activations': ('aten::clamp_min', 'aten::gelu', 'aten::hardsigmoid', 'aten::relu'),
    'copies': ('aten::copy_', 'aten::cat'),
    'sums, products by element': ('aten::add', 'aten::mul', 'aten::sub', 'aten::addcmul'),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', help='partialnet_ARCH or a name of timm (default: the six variants and '
                                                    "FasterNet's six)")
    parser.add_argument('--size', type=int, default=224, help='height and width of the images (default: 224)')
    parser.add_argument('--threads', type=int, default=1, help='threads on the CPU (default: 1)')
    parser.add_argument('--rounds', type=int, default=15, help='rounds of timing (default: 15)')
    args = parser.parse_args()
    for name in ('size', 'threads', 'rounds'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be positive, got {getattr(args, name)}')
    args.networks = args.networks or [f'{family}_{arch}' for arch in VARIANTS for family in ('partialnet', 'fasternet')]
    for name in args.networks:
        try:
            check_name(name)
        except ValueError as error:
            parser.error(str(error))
    return args


def find_products(model: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weights (C_out, C_in k k) and inputs (C_in k k, places) of all products of one pass.

    Gates of one image, products with a vector, are left out.
    """
    products = []

    def note(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        weight = layer.weight.detach().flatten(1).contiguous()
        places = out.numel() // len(weight)
        if places > 1:
            products.append((weight, torch.randn(weight.shape[1], places)))

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.enable_grad():  # for gradients, PartialNet calls its layers one by one
        model(images)
    for handle in handles:
        handle.remove()
    return products


def print_limits(passes: dict[str, Callable[[], object]], products: dict[str, list], args: argparse.Namespace) -> None:
    print('| network | multiply-adds of the products (G) | products alone (ms) | network (ms) | products / network |\n'
          '|---|---|---|---|---|')
    for name in track(passes, description='timing', console=Console(stderr=True)):
        pairs = products[name]
        times = time_in_turns({'limit': lambda pairs=pairs: [torch.mm(*pair) for pair in pairs],
                               'network': passes[name]}, args.rounds, warmup=3)
        ratio = ratio_in_turns(times, 'limit', 'network')
        count = sum(weight.numel() * x.shape[1] for weight, x in pairs)
        limit, whole = (1e3 * statistics.median(times[key]) for key in ('limit', 'network'))
        print(f'| {name} | {count / 1e9:.2f} | {limit:.1f} | {whole:.1f} | {ratio["median"]:.2f} '
              f'({ratio["low"]:.2f}-{ratio["high"]:.2f}) |')


def print_shares(passes: dict[str, Callable[[], object]], args: argparse.Namespace) -> None:
    print(f'\n| network | {" | ".join(GROUPS)} | other operators | between operators |\n|{"---|" * (len(GROUPS) + 3)}')
    for name, run in passes.items():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(args.rounds):
                run()
        seconds: dict[str, float] = defaultdict(float)
        for event in profiler.key_averages():
            group = next((group for group, starts in GROUPS.items() if event.key.startswith(starts)), 'other operators')
            seconds[group] += event.self_cpu_time_total / 1e6
        # The profiler slows what is between operators, so the whole is timed without it.
        whole = statistics.median(time_in_turns({name: run}, args.rounds)[name]) * args.rounds
        shares = [seconds[group] / whole for group in (*GROUPS, 'other operators')]
        shares.append(max(0., 1 - sum(shares)))
        print(f'| {name} | {" | ".join(f"{share:.0%}" for share in shares)} |')


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    images = torch.randn(1, 3, args.size, args.size)
    passes: dict[str, Callable[[], object]] = {}
    products: dict[str, list] = {}
    for name in track(args.networks, description='building', console=Console(stderr=True)):
        model = build_network(name)
        merge_network(model, (args.size, args.size))
        products[name] = find_products(model, images)
        passes[name] = lambda model=model: model(images)
    print(f'{describe_machine("cpu")}\n')
    with torch.inference_mode():
        print_limits(passes, products, args)
        print_shares(passes, args)


if __name__ == '__main__':
    main()
