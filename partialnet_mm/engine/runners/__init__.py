# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .coco_format_runner import CocoFormatRunner, spread_data_settings

__all__ = ['CocoFormatRunner', 'spread_data_settings']
