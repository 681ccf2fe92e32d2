# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Writes the weights that remain of a searched PartialNet when the learned split ratios are fixed."""
import argparse
import io

import torch

from partialnet_mm.checkpoint.atomic import write_atomically
from partialnet_mm.checkpoint.pretrained import find_state_dict
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.models.dpconv.fixed_ratios import block_ratios, fix_ratios


def convert(content: dict) -> dict:
    """The checkpoint of the fixed network: see :func:`fix_ratios`.

    Args:
        content: What a checkpoint of a search holds.

    Returns:
        dict: ``state_dict``, and ``meta`` with ``split_ratio``, one a block,
        and, where it was there, ``dataset_meta``.

    Raises:
        ValueError: If it is of something else, or gates are out of order.
    """
    state_dict = find_state_dict(content)
    meta = {name: value for name, value in content.get('meta', {}).items() if name == 'dataset_meta'}
    return dict(state_dict=fix_ratios(state_dict), meta=dict(meta, split_ratio=block_ratios(state_dict)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='of a search')
    parser.add_argument('out', help='checkpoint to write, for load_from= of the config that dpconv_ratios.py writes')
    args = parser.parse_args()
    try:
        content = read_checkpoint(args.checkpoint)
        fixed = convert(content)
        buffer = io.BytesIO()
        torch.save(fixed, buffer)
        write_atomically(buffer.getvalue(), args.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f'{args.checkpoint!r} was not converted: {error}\n')
    before = sum(tensor.numel() for tensor in find_state_dict(content).values())
    after = sum(tensor.numel() for tensor in fixed['state_dict'].values())
    print(f'{len(fixed["state_dict"])} tensors, {after} of {before} values, written to {args.out}')


if __name__ == '__main__':
    main()
