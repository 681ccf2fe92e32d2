# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Photographs in archives beside the checkout; tests that use them are skipped elsewhere."""
import itertools
import tarfile

import cv2
import numpy as np
import pytest

from tests.helpers.libraries import ROOT

DATA = ROOT.parent / 'shared' / 'data'


def photographs(archive, count):
    """The first JPEG files of an archive, as bytes."""
    if not (DATA / archive).is_file():
        pytest.skip(f'{archive} is not in {DATA}')
    with tarfile.open(DATA / archive) as files:
        images = (file for file in files if file.name.lower().endswith(('.jpg', '.jpeg')))
        return [files.extractfile(image).read() for image in itertools.islice(images, count)]


def decode(content):
    """(H, W, 3) in BGR."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
