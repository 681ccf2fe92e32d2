# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks that COCO 2017 is all there: counts of images and annotations, image files, and checksums of the archives.

Exits with 1 and names what is wrong. Archives are checked where they lie in DATA_ROOT or in --archives; they may be
deleted after unpacking.
"""
import argparse
import hashlib
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.preflight import Finding, check_coco, errors_in, format_findings, read_coco

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


def check_split(root: Path, split: str, images: int | None) -> list[str]:
    """Compares the counts of a split with the published ones, then checks its data; returns what is wrong."""
    path, folder = root / 'annotations' / f'instances_{split}.json', root / split
    content = read_coco(str(path))
    if isinstance(content, Finding):
        return [str(content)]
    counts = {'images': len(content.images), 'annotations': len(content.ids), 'categories': len(content.categories),
              'image files': sum(entry.name.endswith('.jpg') for entry in os.scandir(folder)) if folder.is_dir() else 0}
    expected = dict(SPLITS[split], **{'image files': SPLITS[split]['images']})
    print(f'{split}: ' + ', '.join(f'{counts[key]} {key}' for key in expected))
    wrong = [f'{split} has {counts[key]} {key}, COCO 2017 has {expected[key]}' for key in expected
             if counts[key] != expected[key]]
    errors = [] if wrong else errors_in(check_coco(content, str(folder), images=images))
    return wrong or ([format_findings(errors)] if errors else [])


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
        wrong += check_split(args.root, split, None if args.images == 'all' else int(args.images))
    print('\n'.join(['', 'WRONG:', *wrong]) if wrong else '\nCOCO 2017 is complete')
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
