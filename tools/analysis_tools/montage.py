# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Joins the first pictures of a folder into one."""
import argparse
from pathlib import Path

import cv2
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('folder', type=Path, help='folder of pictures')
    parser.add_argument('out', help='picture to write')
    parser.add_argument('--columns', type=int, default=2)
    parser.add_argument('--rows', type=int, default=4)
    parser.add_argument('--height', type=int, default=192, help='of each picture, in pixels')
    args = parser.parse_args()
    paths = sorted(path for path in args.folder.glob('*') if path.suffix.lower() in ('.jpg', '.png'))
    if not paths:
        parser.error(f'no .jpg or .png in {str(args.folder)!r}')
    tiles = []
    for path in paths[:args.columns * args.rows]:
        picture = cv2.imread(str(path))
        width = round(picture.shape[1] * args.height / picture.shape[0])
        tiles.append(cv2.resize(picture, (width, args.height), interpolation=cv2.INTER_AREA))
    cell = max(tile.shape[1] for tile in tiles)
    tiles = [cv2.copyMakeBorder(tile, 0, 4, 0, cell + 4 - tile.shape[1], cv2.BORDER_CONSTANT, value=(255, 255, 255))
             for tile in tiles]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % args.columns)
    rows = [np.hstack(tiles[i:i + args.columns]) for i in range(0, len(tiles), args.columns)]
    cv2.imwrite(args.out, np.vstack(rows))


if __name__ == '__main__':
    main()
