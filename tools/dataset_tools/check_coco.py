# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks that COCO 2017 is all there: counts of images and annotations, image files, and checksums of the archives.

Exits with 1 and names what is wrong. Archives are checked where they lie in DATA_ROOT or in --archives; they may be
deleted after unpacking.
"""
import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.preflight import check_coco, errors_in, format_findings

#: Images, annotations and categories of each split's instances_<split>.json.
SPLITS = {'train2017': dict(images=118287, annotations=860001, categories=80),
          'val2017': dict(images=5000, annotations=36781, categories=80)}
#: MD5 of the archives of images.cocodataset.org.
ARCHIVES = {'train2017.zip': 'cced6f7f71b7629ddf16f17bbcfab6b2', 'val2017.zip': '442b8da7639aecaf257c1dceb8ba8c80',
            'annotations_trainval2017.zip': 'f4bbac642086de4f52a3fdda2de5fa2c'}


def check_archives(folder: Path) -> list[str]:
    """Compares the archives that are there with the published ones; returns what is wrong."""
    wrong = []
    for name, expected in ARCHIVES.items():
        path = folder / name
        if not path.is_file():
            print(f'{name}: not in {folder}, not checked')
            continue
        digest = hashlib.md5()
        with open(path, 'rb') as file, wrap_file(file, path.stat().st_size, description=name,
                                                 console=Console(stderr=True)) as progress:
            while block := progress.read(1 << 24):
                digest.update(block)
        print(f'{name}: MD5 {digest.hexdigest()}')
        if digest.hexdigest() != expected:
            wrong.append(f'{path} has MD5 {digest.hexdigest()}, the published one {expected}: fetch it again '
                         '(wget -c goes on where a download broke off)')
    return wrong


def check_counts(root: Path, split: str) -> list[str]:
    """Compares the counts of a split with the published ones; returns what is wrong."""
    path = root / 'annotations' / f'instances_{split}.json'
    if not path.is_file():
        return [f'{path} does not exist']
    try:
        content = json.loads(path.read_bytes())
        counts = {key: len(content[key]) for key in SPLITS[split]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        return [f'{path} ({path.stat().st_size} bytes) is not in COCO format: {type(error).__name__}: {error}']
    folder = root / split
    counts['image files'] = sum(entry.name.endswith('.jpg') for entry in os.scandir(folder)) if folder.is_dir() else 0
    expected = dict(SPLITS[split], **{'image files': SPLITS[split]['images']})
    print(f'{split}: ' + ', '.join(f'{counts[key]} {key}' for key in expected))
    return [f'{split} has {counts[key]} {key}, COCO 2017 has {expected[key]}' for key in expected
            if counts[key] != expected[key]]


@command
def main() -> int:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', nargs='?', type=Path, default=Path('data/coco'),
                        help='folder with train2017, val2017 and annotations (default: data/coco)')
    parser.add_argument('--archives', type=Path, help='folder of the downloaded zip files (default: the root)')
    parser.add_argument('--images', default='200', metavar='N',
                        help="images of each split to decode, a number or 'all' (default: 200)")
    args = parser.parse_args()
    if not args.root.is_dir():
        parser.error(f'{str(args.root)!r} is not a folder')
    if args.images != 'all' and not (args.images.isdigit() and int(args.images) > 0):
        parser.error(f"--images must be a positive number or 'all', got {args.images!r}")
    wrong = check_archives(args.archives or args.root)
    for split in SPLITS:
        found = check_counts(args.root, split)
        wrong += found
        if not found:
            errors = errors_in(check_coco(str(args.root / 'annotations' / f'instances_{split}.json'),
                                          str(args.root / split),
                                          images=None if args.images == 'all' else int(args.images)))
            wrong += [format_findings(errors)] if errors else []
    print('\n'.join(['', 'WRONG:', *wrong]) if wrong else '\nCOCO 2017 is complete')
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
