# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Joins the first pictures of a folder into one."""
import argparse
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.functional import pad, pil_to_tensor, resize
from torchvision.utils import make_grid, save_image

from partialnet_mm.analysis.commands import positive
from partialnet_mm.engine.runners.user_errors import ToolParser, command


@command
def main() -> None:
    parser = ToolParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('folder', type=Path, help='folder of pictures')
    parser.add_argument('out', help='picture to write')
    parser.add_argument('--columns', type=positive, default=2)
    parser.add_argument('--rows', type=positive, default=4)
    parser.add_argument('--height', type=positive, default=192, help='of each picture, in pixels')
    args = parser.parse_args()
    paths = sorted(path for path in args.folder.glob('*') if path.suffix.lower() in ('.jpg', '.png'))
    if not paths:
        parser.error(f'no .jpg or .png in {str(args.folder)!r}')
    tiles = []
    for path in paths[:args.columns * args.rows]:
        tile = pil_to_tensor(Image.open(path).convert('RGB')).float() / 255
        tiles.append(resize(tile, [args.height, round(tile.shape[2] * args.height / tile.shape[1])], antialias=True))
    width = max(tile.shape[2] for tile in tiles)
    tiles = [pad(tile, [0, 0, width - tile.shape[2], 0], fill=1) for tile in tiles]
    save_image(make_grid(torch.stack(tiles), nrow=args.columns, padding=4, pad_value=1), args.out)


if __name__ == '__main__':
    main()
