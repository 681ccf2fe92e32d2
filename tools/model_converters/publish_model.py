# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Writes the weights of a checkpoint, and nothing that only a training needs, to a file named by its hash."""
import hashlib
import os

from partialnet_mm.checkpoint import check_ending, read_checkpoint, serialize_checkpoint
from partialnet_mm.checkpoint.atomic import refuse_overwrite, write_atomically
from partialnet_mm.checkpoint.hashed_name import sha256_of
from partialnet_mm.converters.publish import strip_checkpoint
from partialnet_mm.engine.runners.user_errors import ToolParser, command


@command
def main() -> None:
    parser = ToolParser(description=__doc__)
    parser.add_argument('source', help='checkpoint of a training, or a converted one')
    parser.add_argument('target', help='NAME, NAME.safetensors or NAME.pth: NAME-<first 8 digits of the SHA-256> and '
                        'the ending is written, .safetensors by default')
    parser.add_argument('--no-ema', action='store_true',
                        help='where EMAHook averaged the weights: those of the last step instead of the averages')
    args = parser.parse_args()
    name, ending = os.path.splitext(args.target)
    try:
        ending = check_ending(args.target) if ending else '.safetensors'
    except ValueError as error:
        parser.error(f'target {error}')
    try:
        content = read_checkpoint(args.source)
        published = strip_checkpoint(content, args.no_ema)
        data = serialize_checkpoint(published, ending)
        digest = hashlib.sha256(data).hexdigest()
        path = f'{name}-{digest[:8]}{ending}'
        # The same weights give the same file.
        if not (os.path.isfile(path) and sha256_of(path) == digest):
            refuse_overwrite(path, [args.source])
            write_atomically(data, path)
            if sha256_of(path) != digest:
                raise OSError(f'{path!r} does not hold what was written to it')
    except (OSError, ValueError) as error:
        parser.exit(2, f'{args.source!r} was not published: {" ".join(str(error).split())}\n')
    dropped = ', '.join(sorted(set(content) - set(published) - set(published['state_dict'])))
    print(f'{len(published["state_dict"])} tensors; left out: {dropped or "nothing"}')
    print(path)


if __name__ == '__main__':
    main()
