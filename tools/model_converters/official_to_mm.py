# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Converts a checkpoint of the paper's official code into one of this project, or back."""

from partialnet_mm.checkpoint import check_ending, read_checkpoint, write_checkpoint
from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.converters.official_layout import from_official, to_official
from partialnet_mm.engine.runners.user_errors import ToolParser, command


@command
def main() -> None:
    parser = ToolParser(description=__doc__)
    parser.add_argument('source', help='checkpoint to read')
    parser.add_argument('target', help='checkpoint to write: FILE.safetensors, or FILE.pth')
    parser.add_argument('--reverse', action='store_true', help="from this project's layout to the official one")
    parser.add_argument('--head-bias', action='store_true',
                        help="with --reverse: write the bias of the head's hidden layer, for which the official code "
                        'must be changed to load')
    parser.add_argument('--force', action='store_true', help='overwrite the target if it exists')
    args = parser.parse_args()
    if args.head_bias and not args.reverse:
        parser.error('--head-bias goes with --reverse only')
    try:
        check_ending(args.target)
        refuse_overwrite(args.target, [args.source], args.force)
        content = read_checkpoint(args.source)
        converted = to_official(content, args.head_bias) if args.reverse else from_official(content)
        write_checkpoint(converted, args.target)
    except (OSError, ValueError) as error:
        parser.exit(2, f'{args.source!r} was not converted: {" ".join(str(error).split())}\n')
    backbone = ', '.join(f'{key}={value!r}' for key, value in converted['meta']['backbone'].items() if key != 'type')
    print(f'{args.target}: {len(converted["state_dict"])} tensors of PartialNet({backbone})')
    if isinstance(converted['meta']['backbone']['arch'], dict):
        print('These are sizes of no variant. Tensors do not show the activation: set act_cfg in arch.')


if __name__ == '__main__':
    main()
