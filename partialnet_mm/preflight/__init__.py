# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of data before a training starts."""
from .coco import check_coco, read_coco
from .config import check_config, dicts_with, image_folders, leaf_datasets, several_files
from .findings import Finding, errors_in, format_findings, stop_on_errors
from .images import check_image

__all__ = ['Finding', 'check_coco', 'check_config', 'check_image', 'dicts_with', 'errors_in', 'format_findings',
           'image_folders', 'leaf_datasets', 'read_coco', 'several_files', 'stop_on_errors']
