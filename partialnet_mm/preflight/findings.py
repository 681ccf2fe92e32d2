# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The results of a check of data."""
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

#: Number of findings of one kind that a report prints in full.
SHOWN = 5


class Finding(NamedTuple):
    """A defect of a data set or, as a ``note``, something that does not stop a training."""

    kind: str  # groups findings in a report, e.g. 'box outside'
    file: str  # the file or folder
    where: str  # in the file, e.g. 'annotation 7 of image 3 (a.jpg)'
    text: str
    note: bool = False

    def __str__(self) -> str:
        where = f', {self.where}' if self.where else ''
        return f'{self.file}{where}: {self.text}'


def errors_in(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that must stop a training."""
    return [finding for finding in findings if not finding.note]


def format_findings(findings: Sequence[Finding]) -> str:
    """A report of several lines: errors first, at most :data:`SHOWN` of each kind in full, and the number of others."""
    groups: dict[tuple, list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=lambda finding: finding.note):
        groups[finding.note, finding.kind].append(finding)
    lines = []
    for (note, kind), members in groups.items():
        lines.append(f'{"note " if note else "ERROR"} {kind} ({len(members)})')
        lines += [f'  {finding}' for finding in members[:SHOWN]]
        if len(members) > SHOWN:
            lines.append(f'  and {len(members) - SHOWN} more')
    return '\n'.join(lines) or 'nothing wrong was found'
