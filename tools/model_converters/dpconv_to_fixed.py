# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Writes the weights that remain of a searched PartialNet when the learned split ratios are fixed."""

from partialnet_mm.checkpoint import check_ending, read_checkpoint, write_checkpoint
from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.checkpoint.pretrained import find_state_dict
from partialnet_mm.converters.fixed_ratios import block_kinds, fix_checkpoint
from partialnet_mm.engine.runners.user_errors import ToolParser, command


@command
def main() -> None:
    parser = ToolParser(description=__doc__)
    parser.add_argument('checkpoint', help='of a search')
    parser.add_argument('out', help='checkpoint to write, FILE.safetensors or FILE.pth, for load_from= of the config '
                        'that dpconv_ratios.py writes')
    parser.add_argument('--force', action='store_true', help='overwrite the file if it exists')
    args = parser.parse_args()
    try:
        check_ending(args.out)
        refuse_overwrite(args.out, [args.checkpoint], args.force)
        content = read_checkpoint(args.checkpoint)
        fixed = fix_checkpoint(content)
        write_checkpoint(fixed, args.out)
    except (OSError, ValueError) as error:
        parser.exit(2, f'{args.checkpoint!r} was not converted: {error}\n')
    before = sum(tensor.numel() for tensor in find_state_dict(content).values())
    after = sum(tensor.numel() for tensor in fixed['state_dict'].values())
    print(f'{len(fixed["state_dict"])} tensors, {after} of {before} values, written to {args.out}')
    residuals = block_kinds(fixed['state_dict'])
    print(f'blocks of the stages: {", ".join("v2" if residual else "v1" for residual in residuals)}')
    if not residuals[-1]:
        print('Stage 4 was searched with block v1. PAT_sf has block v2, a residual around the token mixer: to search '
              'with that, as the official code does, set model.backbone.mixer_residual="(False,False,False,True)"')


if __name__ == '__main__':
    main()
