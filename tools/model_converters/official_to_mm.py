# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Turns a checkpoint of the paper's official code into one of this project, or back."""
import argparse
import io
import os

import torch

from partialnet_mm.checkpoint.atomic import write_atomically
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.converters.official_layout import from_official, to_official


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint to read')
    parser.add_argument('target', help='checkpoint to write')
    parser.add_argument('--reverse', action='store_true', help="from this project's layout to the official one")
    parser.add_argument('--head-bias', action='store_true',
                        help="with --reverse: write the bias of the head's hidden layer, for which the official code "
                        'must be given a place')
    parser.add_argument('--force', action='store_true', help='write over a file that exists')
    args = parser.parse_args()
    if args.head_bias and not args.reverse:
        parser.error('--head-bias goes with --reverse only')
    if os.path.exists(args.target) and not args.force:
        parser.exit(1, f'{args.target!r} exists; --force writes over it\n')
    try:
        # Data only, and stricter than torch.load(weights_only=True), which runs TorchScript archives before torch 2.6.
        content = read_checkpoint(args.source)
        converted = to_official(content, args.head_bias) if args.reverse else from_official(content)
        buffer = io.BytesIO()
        torch.save(converted, buffer)
        write_atomically(buffer.getvalue(), args.target)
    except (OSError, ValueError) as error:
        parser.exit(1, f'{args.source!r} was not converted: {" ".join(str(error).split())}\n')
    backbone = ', '.join(f'{key}={value!r}' for key, value in converted['meta']['backbone'].items() if key != 'type')
    print(f'{args.target}: {len(converted["state_dict"])} tensors of PartialNet({backbone})')
    if isinstance(converted['meta']['backbone']['arch'], dict):
        print("These sizes are no variant's. The activation, act_cfg in arch, does not show in tensors: name it.")


if __name__ == '__main__':
    main()
