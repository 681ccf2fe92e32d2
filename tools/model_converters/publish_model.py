# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Writes the weights of a checkpoint, and nothing that only a training needs, to a file named by its hash."""
import argparse
import hashlib
import io

import torch

from partialnet_mm.checkpoint.atomic import write_atomically
from partialnet_mm.checkpoint.hashed_name import sha256_of
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.converters.publish import strip_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='checkpoint of a training, or a converted one')
    parser.add_argument('target', help='NAME.pth: NAME-<first 8 digits of the SHA-256>.pth is written')
    parser.add_argument('--no-ema', action='store_true',
                        help='where EMAHook averaged the weights: those of the last step instead of the averages')
    args = parser.parse_args()
    if not args.target.endswith('.pth'):
        parser.error(f'target must end in .pth, got {args.target!r}')
    try:
        content = read_checkpoint(args.source)
        published = strip_checkpoint(content, args.no_ema)
        buffer = io.BytesIO()
        torch.save(published, buffer)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        path = f'{args.target[:-len(".pth")]}-{digest[:8]}.pth'
        write_atomically(buffer.getvalue(), path)
        if sha256_of(path) != digest:
            raise OSError(f'{path!r} does not hold what was written to it')
    except (OSError, ValueError) as error:
        parser.exit(1, f'{args.source!r} was not published: {" ".join(str(error).split())}\n')
    dropped = ', '.join(sorted(set(content) - set(published) - set(published['state_dict'])))
    print(f'{len(published["state_dict"])} tensors; left out: {dropped or "nothing"}')
    print(path)


if __name__ == '__main__':
    main()
