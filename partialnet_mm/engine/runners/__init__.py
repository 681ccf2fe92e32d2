# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .own_data import CocoFormatRunner, apply_own_data_settings

__all__ = ['CocoFormatRunner', 'apply_own_data_settings']
