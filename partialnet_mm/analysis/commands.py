# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Types of arguments that several commands share: argparse reports the argument, the value and what is allowed."""
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

import torch


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f'must be a number of at least 1, got {text}')
    return int(text)


def existing_file(text: str) -> Path:
    """The path of a config."""
    if not Path(text).is_file():
        raise ArgumentTypeError(f'config {text!r} does not exist')
    return Path(text)


def any_device(text: str) -> str:
    """A device that torch has on this machine, e.g. 'cpu', 'cuda' or 'cuda:1'."""
    try:
        kind, index = torch.device(text).type, torch.device(text).index
    except RuntimeError:
        kind, index = None, None
    if kind not in ('cpu', 'cuda'):
        raise ArgumentTypeError(f"must be 'cpu', 'cuda' or one GPU such as 'cuda:1', got {text!r}")
    gpus = torch.cuda.device_count()
    if kind == 'cuda' and (index or 0) >= gpus:
        raise ArgumentTypeError(f'{text!r} is not on this machine: torch sees {gpus or "no"} GPU{"s" * (gpus > 1)}')
    return text


def device(text: str) -> str:
    """'cpu', or 'cuda' where there is a GPU."""
    if text not in ('cpu', 'cuda'):
        raise ArgumentTypeError(f"must be 'cpu' or 'cuda', got {text!r}")
    return any_device(text)


def output_file(text: str) -> Path:
    """The path of a file to write, in a folder that exists."""
    if not Path(text).absolute().parent.is_dir():
        raise ArgumentTypeError(f'the folder of {text!r} does not exist')
    return Path(text)


def picture(text: str) -> Path:
    """The path of a picture to write."""
    from matplotlib.backend_bases import FigureCanvasBase
    endings = [f'.{ending}' for ending in FigureCanvasBase.get_supported_filetypes()]
    if Path(text).suffix.lower() not in endings:
        raise ArgumentTypeError(f'{text!r} must end in one of {", ".join(endings)}')
    return output_file(text)


def add_machine_arguments(parser: ArgumentParser, rounds: int, threads: int | None = None) -> None:
    """Adds --device, --threads (default: as PyTorch has them) and --rounds."""
    parser.add_argument('--device', type=device, default='cuda' if torch.cuda.is_available() else 'cpu',
                        help="'cpu' or 'cuda' (default: the GPU where there is one)")
    parser.add_argument('--threads', type=positive, default=threads or torch.get_num_threads(),
                        help='threads on the CPU (default: %(default)s)')
    parser.add_argument('--rounds', type=positive, default=rounds, help='timed rounds (default: %(default)s)')
