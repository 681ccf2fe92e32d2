# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Draws the demo's data set: shapes on textured backgrounds, with COCO annotations."""
import argparse
from pathlib import Path

from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.datasets import write_shapes_dataset
from partialnet_mm.engine.runners.user_errors import ToolParser, command


@command
def main() -> None:
    parser = ToolParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('root', nargs='?', default='data/shapes', help='folder to write to')
    parser.add_argument('--train', type=int, default=240, help='training images')
    parser.add_argument('--val', type=int, default=48, help='held-out images')
    parser.add_argument('--size', type=int, default=256, help='height and width in pixels')
    parser.add_argument('--seed', type=int, default=0, help='of the random numbers')
    parser.add_argument('--force', action='store_true', help='write over existing files')
    args = parser.parse_args()
    root, counts = Path(args.root), dict(train=args.train, val=args.val)
    try:
        for split, count in counts.items():
            refuse_overwrite(root / 'annotations' / f'instances_{split}.json', force=args.force)
            for image in range(1, count + 1):
                refuse_overwrite(root / split / f'{image:05d}.jpg', force=args.force)
        objects = write_shapes_dataset(root, counts, args.size, args.seed)
    except ValueError as error:
        parser.error(str(error))
    for split, count in objects.items():
        print(f'{args.root}/{split}: {counts[split]} images, {count} objects')


if __name__ == '__main__':
    main()
