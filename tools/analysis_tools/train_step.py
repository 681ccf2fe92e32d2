# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Times a training step of PartialNet in turns with timm's FasterNet of the same size, and takes its peak memory.

"plain" is the same PartialNet without the operations that PyTorch fuses: attention by a softmax of its logits, gates by
means, deviations and a convolution.
"""
import argparse
import copy
import multiprocessing
import statistics
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from partialnet_mm.analysis.peak_memory import peak_memory
from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns
from partialnet_mm.models import GaussianGate, PartialNet, PartialSelfAttention
from partialnet_mm.models._layers import normalize

ARCHS = ('t0', 't1', 't2', 's', 'm', 'l')


class Classifier(nn.Module):
    """PartialNet with the paper's head."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        self.backbone = PartialNet(arch)
        act = nn.GELU() if arch in ('t0', 't1') else nn.ReLU()
        self.head = nn.Sequential(nn.Linear(self.backbone.channels[-1], 1280), act, nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


class PlainGate(nn.Module):
    """A GaussianGate as the paper writes it."""

    def __init__(self, gate: GaussianGate) -> None:
        super().__init__()
        self.conv, self.norm = gate.conv, gate.norm

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        moments = torch.stack((x.mean(-1), x.std(-1)), dim=-1).unsqueeze(2)
        return F.hardsigmoid(normalize(self.norm, self.conv(moments)))


class PlainSelfAttention(nn.Module):
    """PAT_sf with its logits, bias and weights written out."""

    def __init__(self, mixer: PartialSelfAttention) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        mixer = self.mixer
        conv_part, attended = x.split(mixer.split_sizes, dim=1)
        batch, channels, height, width = attended.shape
        tokens = mixer.norm(attended.flatten(2).transpose(1, 2))
        qkv = mixer.qkv(tokens).view(batch, height * width, 3, mixer.num_heads, -1).permute(2, 0, 3, 1, 4)
        logits = qkv[0] @ qkv[1].transpose(-2, -1) * qkv.shape[-1]**-0.5 + mixer.position_bias(height, width)
        tokens = (logits.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(batch, height * width, channels)
        attended = mixer.proj(tokens).transpose(1, 2).reshape(batch, channels, height, width)
        return torch.cat((mixer.conv(conv_part), attended), dim=1)


def plain(model: nn.Module) -> nn.Module:
    """The same model, same weights, without fused operations."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GaussianGate):
                setattr(module, name, PlainGate(child))
            elif isinstance(child, PartialSelfAttention):
                setattr(module, name, PlainSelfAttention(child))
    return model


def build(name: str, arch: str) -> nn.Module:
    torch.manual_seed(0)
    if name == 'FasterNet (timm)':
        return timm.create_model(f'fasternet_{arch}')
    model = Classifier(arch)
    return plain(model) if name == 'PartialNet, plain' else model


NAMES = ('PartialNet', 'PartialNet, plain', 'FasterNet (timm)')


def training_step(name: str, arch: str, args: argparse.Namespace) -> Callable[[], None]:
    """A function that trains a network for one step."""
    model = build(name, arch).to(args.device).train()
    torch.manual_seed(1)
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    labels = torch.randint(1000, (args.batch, ), device=args.device)
    if args.channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def memory_of_a_step(name: str, arch: str, args: argparse.Namespace, answer: 'multiprocessing.Queue') -> None:
    """Puts the bytes that two steps need beyond the model that waits for them; for a process of its own."""
    torch.set_num_threads(args.threads)
    step = training_step(name, arch, args)
    answer.put(peak_memory(lambda: (step(), step())))


def measure_memory(name: str, arch: str, args: argparse.Namespace) -> int:
    context = multiprocessing.get_context('spawn')
    answer = context.Queue()
    process = context.Process(target=memory_of_a_step, args=(name, arch, args, answer))
    process.start()
    memory = answer.get()
    process.join()
    return memory


def difference(arch: str, args: argparse.Namespace) -> tuple[float, float]:
    """Relative difference of loss and gradient between PartialNet and its plain form, in float64.

    In float32 the last digits decide on which side of ReLU's kink a value lies, and gradients differ by 0.1 %.
    """
    torch.manual_seed(1)
    images = torch.randn(4, 3, args.size, args.size, dtype=torch.float64, device=args.device)
    results = []
    for name in NAMES[:2]:
        model = build(name, arch).to(images)
        loss = F.cross_entropy(model(images), torch.arange(4, device=args.device))
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (loss, gradient), (plain_loss, plain_gradient) = results
    return (((loss - plain_loss).abs() / plain_loss).item(),
            ((gradient - plain_gradient).norm() / plain_gradient.norm()).item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--archs', nargs='+', choices=ARCHS, default=['t2'])
    parser.add_argument('--batch', type=int, default=32, help='images a step (default: 32)')
    parser.add_argument('--size', type=int, default=224, help='height and width of the images (default: 224)')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='threads on the CPU')
    parser.add_argument('--rounds', type=int, default=9, help='timed steps of each network (default: 9)')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--bf16', action='store_true', help='autocast to bfloat16')
    parser.add_argument('--channels-last', action='store_true')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU')

    table = Table('network', 's / step', 'images / s', 'time over FasterNet (quartiles)', 'peak memory (MiB)')
    torch.set_num_threads(args.threads)
    for arch in track(args.archs, description='networks', console=Console(stderr=True)):
        steps = {name: training_step(name, arch, args) for name in NAMES}
        times = time_in_turns(steps, args.rounds)
        del steps
        for name in NAMES:
            ratio = ratio_in_turns(times, name, NAMES[-1])
            seconds = statistics.median(times[name])
            table.add_row(f'{name}-{arch.upper()}', f'{seconds:.3f}', f'{args.batch / seconds:.1f}',
                          f'{ratio["median"]:.2f} ({ratio["low"]:.2f}-{ratio["high"]:.2f})',
                          f'{measure_memory(name, arch, args) / 2**20:.0f}')
        loss, gradient = difference(arch, args)
        table.add_section()
        table.caption = (f'{args.device}, {args.threads} threads, batch {args.batch}, {args.size} x {args.size}, '
                         f'{args.rounds} rounds in turns, torch {torch.__version__}; PartialNet against its plain '
                         f'form in float64, relative: loss {loss:.0e}, gradient {gradient:.0e} ({arch.upper()})')
    Console().print(table)


if __name__ == '__main__':
    main()
