# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks all data that a config names; exits with 1 where a training would fail or learn from wrong data.

It reads the data even if it was checked before; trainings start at once while the data has not changed since.
"""
import sys

from partialnet_mm.engine.runners.command_line import add_config_arguments, load_config
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.preflight import check_config, errors_in, format_findings


@command
def main() -> int:
    parser = ToolParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--images', default='200', metavar='N',
                        help="images to decode of each data set, a number or 'all' (default: 200)")
    args = parser.parse_args()
    if args.images != 'all' and not (args.images.isdigit() and int(args.images) > 0):
        parser.error(f"--images must be a positive number or 'all', got {args.images!r}")
    # Without splits, files that are missing are findings, reported with all others.
    findings = check_config(load_config(parser, args), None if args.images == 'all' else int(args.images), cached=False)
    print(format_findings(findings))
    return int(bool(errors_in(findings)))


if __name__ == '__main__':
    sys.exit(main())
