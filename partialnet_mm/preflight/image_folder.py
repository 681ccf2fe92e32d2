# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of classification data: one folder per class."""
import os

from .findings import Finding
from .images import check_image, sample

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.webp')


def check_image_folder(folder: str, num_classes: int | None = None, images: int | None = 200) -> list[Finding]:
    """Checks a folder of class folders, such as ImageNet's; returns errors and notes.

    ``images`` is the number of images to decode, evenly spread over the folder, None for all.
    """
    if not os.path.isdir(folder):
        return [Finding('image folder missing', folder, '', 'the folder does not exist')]
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        return [Finding('no classes', folder, '', 'it holds no folders; one for each class is needed')]
    findings = []
    if num_classes is not None and len(classes) != num_classes:
        findings.append(Finding('number of classes', folder, '', f'it has {len(classes)} folders, but the model '
                                f'distinguishes {num_classes} classes'))
    paths = []
    for name in classes:
        found = [os.path.join(root, file) for root, _, files in os.walk(os.path.join(folder, name))
                 for file in sorted(files) if file.lower().endswith(EXTENSIONS)]
        if not found:
            findings.append(Finding('class without images', os.path.join(folder, name), '', 'it holds no image'))
        paths += found
    for path in sample(paths, images):
        findings += check_image(path)
    return findings
