# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The report of a training: one HTML page with all it needs in it."""
from .page import write_report
from .record import ReportHook

__all__ = ['ReportHook', 'write_report']
