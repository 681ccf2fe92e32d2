# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A small data set in COCO format, for tests of what reads such data."""
import json
from pathlib import Path

from PIL import Image

from tests.helpers.libraries import ROOT

#: Photographs in COCO format beside the checkout; tests that use them are skipped elsewhere.
REAL = ROOT.parent / 'shared' / 'data' / 'fruits_nuts'
NAMES = ('date', 'fig', 'hazelnut')


def write_coco_data(root: Path, images: dict[str, int]) -> Path:
    """Writes images of 800 x 600 pixels to root/images, and annotations as the own-data config expects them.

    Args:
        root: A folder that exists.
        images: Number of images of each split. Each image has two objects.

    Returns:
        ``root``.
    """
    (root / 'images').mkdir()
    (root / 'annotations').mkdir()
    for split, count in images.items():
        content = dict(images=[], annotations=[],
                       categories=[dict(id=i + 1, name=name) for i, name in enumerate(NAMES)])
        for i in range(count):
            name = f'{split}_{i}.jpg'
            Image.new('RGB', (800, 600), (40, 10 * i, 90)).save(root / 'images' / name)
            content['images'].append(dict(id=i + 1, file_name=name, width=800, height=600))
            for x, y in ((100, 50), (400, 300)):
                number = len(content['annotations'])
                content['annotations'].append(dict(
                    id=number + 1, image_id=i + 1, category_id=number % 3 + 1, bbox=[x, y, 200, 100], area=20000,
                    iscrowd=0, segmentation=[[x, y, x + 200, y, x + 200, y + 100, x, y + 100]]))
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return root
