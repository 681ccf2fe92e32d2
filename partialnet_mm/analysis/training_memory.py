# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Memory of the pretraining recipes: what an image keeps for the backward pass, and how many images a card takes."""
import argparse
from collections.abc import Sequence

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..models import PartialNet
from ..zoo import config_path
from .commands import positive
from .measure import kept_memory, markdown_table, progress
from .peers import build_network

MIB, GIB = 2**20, 2**30
#: Variants that have a recipe.
RECIPES = ('t0', 't1', 't2', 's', 'm', 'l')
#: What ``with_cp`` may be.
CHECKPOINTING = (False, 'norm_act', True)
#: Bytes per parameter: weight, gradient and two moments of AdamW in float32, a copy in half precision.
PER_PARAMETER = 18
#: Fraction of a card that may be used, and what the CUDA context and libraries take of it.
USABLE, CONTEXT = 0.9, GIB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that :func:`report` reads."""
    parser.add_argument('networks', nargs='*', metavar='ARCH', default=list(RECIPES),
                        help='variants (default: all six)')
    parser.add_argument('--sizes', type=positive, nargs='+', default=[224, 288],
                        help='sides of the images; the cards are for the last (default: 224 288)')
    parser.add_argument('--cards', type=positive, nargs='+', default=[16, 24, 32, 40, 80],
                        help='GB of the GPUs (default: 16 24 32 40 80)')
    parser.add_argument('--gpus', type=positive, default=8, help='number of GPUs (default: 8)')


def memory_per_image(arch: str, with_cp: bool | str, size: int) -> int:
    """Bytes that one more image of a batch keeps for the backward pass under bfloat16 autocast.

    Copies of the weights in half precision, which a batch keeps once, are not
    among them.

    Args:
        arch: A variant.
        with_cp: As in :class:`PartialNet`.
        size: Side of the images.
    """
    model = PartialNet(arch, with_cp=with_cp).train()
    images = torch.randn(2, 3, size, size)
    with torch.autocast('cpu', torch.bfloat16):
        return kept_memory(model, images) - kept_memory(model, images[:1])


def recomputed_block(arch: str, size: int) -> int:
    """Bytes per image of the largest block while full checkpointing computes it again."""
    model = PartialNet(arch).train()
    kept: list[int] = []

    def count(block: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        x = inputs[0].detach()
        handle.remove()
        kept.append(kept_memory(block, x) - kept_memory(block, x[:1]))

    # The first block has the largest feature maps.
    handle = model.stages[0][0].register_forward_hook(count)
    with torch.autocast('cpu', torch.bfloat16):
        model(torch.randn(2, 3, size, size))
    return kept[0]


def images_per_gpu(share: int, per_image: int, parameters: int, card: int) -> int | None:
    """The most images that fit and divide a GPU's share of the batch; None if not even one fits.

    Args:
        share: Images of each GPU in a batch.
        per_image: Bytes.
        parameters: Of the network.
        card: Memory of the GPU in GB.
    """
    free = USABLE * card * GIB - CONTEXT - PER_PARAMETER * parameters
    return max((images for images in range(1, share + 1) if share % images == 0 and images * per_image <= free),
               default=None)


def check(args: argparse.Namespace) -> None:
    """Raises a ValueError for what would fail later."""
    unknown = [arch for arch in args.networks if arch not in RECIPES]
    if unknown:
        raise ValueError(f'there is no recipe for {unknown[0]!r}: allowed are {", ".join(RECIPES)}')
    small = [size for size in args.sizes if size < PartialNet.min_size]
    if small:
        raise ValueError(f'--sizes must be at least {PartialNet.min_size}, got {small[0]}')
    for arch in args.networks:
        if _batch(arch) % args.gpus:
            raise ValueError(f'--gpus {args.gpus} does not divide the batch of {arch}, {_batch(arch)}')


def report(args: argparse.Namespace) -> str:
    """The tables, in Markdown, of the arguments of :func:`add_arguments`."""
    size = args.sizes[-1]
    kept = {(arch, with_cp, side): memory_per_image(arch, with_cp, side)
            for arch in progress(args.networks, 'memory per image') for with_cp in CHECKPOINTING for side in args.sizes}
    rows = [[arch, side, *(f'{kept[arch, with_cp, side] / MIB:.1f}' for with_cp in CHECKPOINTING),
             *(f'{kept[arch, with_cp, side] / kept[arch, False, side]:.2f}' for with_cp in CHECKPOINTING[1:])]
            for arch in args.networks for side in args.sizes]
    names = [f'with_cp={with_cp!r}' for with_cp in CHECKPOINTING]
    tables = ['MiB per image, kept for the backward pass under bfloat16 autocast:', markdown_table(
        ['', 'size', *names, *(f'{name} / plain' for name in names[1:])], rows)]
    blocks = {arch: recomputed_block(arch, size) for arch in args.networks}
    for with_cp in CHECKPOINTING:
        tables += [f'with_cp={with_cp!r}: images per GPU x accumulated steps on {args.gpus} GPUs, at {size} x {size}:',
                   markdown_table(['', 'batch', *(f'{card} GB' for card in args.cards)],
                                  [_card_row(arch, kept[arch, with_cp, size] + blocks[arch] * (with_cp is True), args)
                                   for arch in args.networks])]
    return '\n\n'.join(tables)


def _recipe(arch: str) -> Config:
    return Config.fromfile(config_path(f'pretrain/partialnet_{arch}_in1k.py'))


def _batch(arch: str) -> int:
    return _recipe(arch).auto_scale_lr.base_batch_size


def _card_row(arch: str, per_image: int, args: argparse.Namespace) -> Sequence[object]:
    share = _batch(arch) // args.gpus
    parameters = sum(parameter.numel() for parameter in build_network(f'partialnet_{arch}').parameters())
    fit = [images_per_gpu(share, per_image, parameters, card) for card in args.cards]
    return arch, _batch(arch), *('none' if images is None else f'{images} x {share // images}' for images in fit)
