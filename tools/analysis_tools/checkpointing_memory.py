# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Measures what with_cp=True saves: memory and time of a training step of the backbone, without and with it.

"kept for the backward pass" is the exact size of the tensors that autograd holds after the forward pass, parameters
and input apart. "peak of a step" is what forward and backward pass together need at most, gradients included, in a
process of its own.
"""
import argparse
import multiprocessing
import statistics
from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from partialnet_mm.analysis.peak_memory import peak_memory
from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns
from partialnet_mm.models import PartialNet


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, without parameters, buffers and input."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters(), *model.buffers())}
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # views share it
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outs = model(x)
    del outs  # until here nothing is freed, so no two storages can have had one address
    return sum(kept.values())


def build(with_cp: bool, args: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = PartialNet(args.arch, out_indices=(0, 1, 2, 3), norm_eval=True, with_cp=with_cp).to(args.device).train()
    return model, torch.randn(args.batch, 3, *args.size, device=args.device)


def training_step(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    sum(out.mean() for out in model(x)).backward()


def measure_memory(with_cp: bool, args: argparse.Namespace, answer: 'multiprocessing.Queue') -> None:
    """Puts kept bytes and peak; for a process of its own."""
    torch.set_num_threads(args.threads)
    model, x = build(with_cp, args)
    # What the first step loads is not what a step needs.
    training_step(model, x[..., :model.min_size, :model.min_size])
    model.zero_grad()
    peak = peak_memory(lambda: training_step(model, x))
    answer.put((kept_bytes(model, x), peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', choices=list(PartialNet.arch_settings), default='s')
    parser.add_argument('--batch', type=int, default=1, help='images a step (default: 1)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), default=[800, 1344],
                        help='of the images (default: 800 1344, as in Mask R-CNN)')
    parser.add_argument('--rounds', type=int, default=3, help='timed steps, in turns (default: 3)')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='threads on the CPU')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU')
    torch.set_num_threads(args.threads)

    context = multiprocessing.get_context('spawn')
    memory = {}
    for with_cp in track((False, True), description='memory', console=Console(stderr=True)):
        answer = context.Queue()
        process = context.Process(target=measure_memory, args=(with_cp, args, answer))
        process.start()
        memory[with_cp] = answer.get()
        process.join()
    models = {str(with_cp): build(with_cp, args) for with_cp in memory}
    times = time_in_turns({name: partial(training_step, *given) for name, given in models.items()}, args.rounds)
    ratio = ratio_in_turns(times, 'True', 'False')

    table = Table('with_cp', 'kept for the backward pass (MiB)', 'peak of a step (MiB)', 's / step')
    for with_cp, (kept, peak) in memory.items():
        table.add_row(str(with_cp), f'{kept / 2**20:.1f}', f'{peak / 2**20:.0f}',
                      f'{statistics.median(times[str(with_cp)]):.2f}')
    table.caption = (f'PartialNet-{args.arch.upper()}, {args.batch} x {args.size[0]} x {args.size[1]}, {args.device}, '
                     f'{args.threads} threads, torch {torch.__version__}; time with over without, in turns: '
                     f'{ratio["median"]:.2f} ({ratio["low"]:.2f}-{ratio["high"]:.2f})')
    Console().print(table)


if __name__ == '__main__':
    main()
