# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Draws the demo's data set: shapes on textured backgrounds, with COCO annotations."""
import argparse

from partialnet_mm.datasets import write_shapes_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('root', nargs='?', default='data/shapes', help='folder to write to')
    parser.add_argument('--train', type=int, default=240, help='training images')
    parser.add_argument('--val', type=int, default=48, help='held-out images')
    parser.add_argument('--size', type=int, default=256, help='height and width in pixels')
    parser.add_argument('--seed', type=int, default=0, help='of the random numbers')
    args = parser.parse_args()
    objects = write_shapes_dataset(args.root, dict(train=args.train, val=args.val), args.size, args.seed)
    for split, count in objects.items():
        print(f'{args.root}/{split}: {getattr(args, split)} images, {count} objects')


if __name__ == '__main__':
    main()
