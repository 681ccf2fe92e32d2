# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks all data that a config names; exits with 1 where a training would fail or learn from wrong data."""
import argparse
import os
import sys

from mmengine.config import Config, DictAction

from partialnet_mm.engine import spread_data_settings
from partialnet_mm.preflight import check_config, errors_in, format_findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--images', default='200', metavar='N',
                        help="images of each data set to decode, a number or 'all' (default: 200)")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, as for tools/train.py')
    args = parser.parse_args()
    if not os.path.isfile(args.config):
        parser.error(f'config {args.config!r} does not exist')
    if args.images != 'all' and not (args.images.isdigit() and int(args.images) > 0):
        parser.error(f"--images must be a positive number or 'all', got {args.images!r}")
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    if cfg.get('runner_type') == 'CocoFormatRunner':
        cfg = spread_data_settings(cfg)
    findings = check_config(cfg, None if args.images == 'all' else int(args.images))
    print(format_findings(findings))
    return int(bool(errors_in(findings)))


if __name__ == '__main__':
    sys.exit(main())
