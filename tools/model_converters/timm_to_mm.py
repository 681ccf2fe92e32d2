# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Converts a checkpoint of a training of partialnet_* by timm into one of this project, or back."""

from partialnet_mm.checkpoint import check_ending, read_checkpoint, write_checkpoint
from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.converters.timm_checkpoint import from_timm, to_timm
from partialnet_mm.engine.runners.user_errors import ToolParser, command


@command
def main() -> None:
    parser = ToolParser(description=__doc__)
    parser.add_argument('source', help='checkpoint to read')
    parser.add_argument('target', help='checkpoint to write: FILE.safetensors, or FILE.pth')
    parser.add_argument('--reverse', action='store_true',
                        help="from a checkpoint of this project's classifiers to one for timm's checkpoint_path")
    parser.add_argument('--no-ema', action='store_true',
                        help='where the training averaged the weights: those of the last step instead of the averages')
    parser.add_argument('--force', action='store_true', help='overwrite the target if it exists')
    args = parser.parse_args()
    try:
        check_ending(args.target)
        refuse_overwrite(args.target, [args.source], args.force)
        content = read_checkpoint(args.source)
        converted = (to_timm if args.reverse else from_timm)(content, args.no_ema)
        write_checkpoint(converted, args.target)
    except (OSError, ValueError) as error:
        parser.exit(2, f'{args.source!r} was not converted: {" ".join(str(error).split())}\n')
    print(f'{args.target}: {len(converted["state_dict"])} tensors')


if __name__ == '__main__':
    main()
