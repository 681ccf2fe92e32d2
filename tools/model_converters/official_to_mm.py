# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Converts a checkpoint of other code into one of this project, or back.

Other code is the official code of PartialNet, FasterNet's, which has the same layout, and timm's FasterNet. The network
is read off the tensors.
"""
import argparse

from partialnet_mm.checkpoint import check_ending, read_checkpoint, write_checkpoint
from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.converters.official_layout import BLOCKS, LAYOUTS, describe, from_official, to_official
from partialnet_mm.engine.runners.user_errors import ToolParser, command


@command
def main() -> None:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='checkpoint to read')
    parser.add_argument('target', help='checkpoint to write: FILE.safetensors, or FILE.pth')
    parser.add_argument('--stage4-block', choices=list(BLOCKS),
                        help="the block that the other code computes in stage 4: v1 in FasterNet's, v2 in the official "
                        'code of PartialNet. Needed for networks without attention in stage 4, whose tensors do not '
                        'show it')
    parser.add_argument('--reverse', action='store_true', help="from this project's layout to that of other code")
    parser.add_argument('--layout', choices=list(LAYOUTS),
                        help="with --reverse: the layout to write, the official one (default) or timm's of FasterNet")
    parser.add_argument('--head-bias', action='store_true',
                        help="with --reverse: write the bias of the head's hidden layer, for which the official code "
                        'must be changed to load')
    parser.add_argument('--force', action='store_true', help='overwrite the target if it exists')
    args = parser.parse_args()
    for option, value in (('--head-bias', args.head_bias), ('--layout', args.layout)):
        if value and not args.reverse:
            parser.error(f'{option} goes with --reverse only')
    try:
        check_ending(args.target)
        refuse_overwrite(args.target, [args.source], args.force)
        content = read_checkpoint(args.source)
        converted = (to_official(content, args.head_bias, args.stage4_block, args.layout or 'official')
                     if args.reverse else from_official(content, args.stage4_block))
        write_checkpoint(converted, args.target)
    except (OSError, ValueError) as error:
        parser.exit(2, f'{args.source!r} was not converted: {" ".join(str(error).split())}\n')
    print(f'{args.target}: {len(converted["state_dict"])} tensors of {describe(converted["meta"]["backbone"])}')


if __name__ == '__main__':
    main()
