# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a check of data finds."""
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

#: Findings of one kind that a report spells out.
SHOWN = 5


class Finding(NamedTuple):
    """One thing about a data set that is wrong, or worth knowing.

    ``kind`` groups findings in a report ('box outside'); ``file`` and
    ``place`` say where ('annotations.json', 'annotation 7 of image 3
    (a.jpg)'); a ``note`` does not stop a training.
    """

    kind: str
    file: str
    place: str
    text: str
    note: bool = False

    def __str__(self) -> str:
        place = f', {self.place}' if self.place else ''
        return f'{self.file}{place}: {self.text}'


def errors_in(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that must stop a training."""
    return [finding for finding in findings if not finding.note]


def format_findings(findings: Sequence[Finding]) -> str:
    """A report: errors first, :data:`SHOWN` of each kind in full, and how many more there are.

    Args:
        findings: Of one or more data sets.

    Returns:
        str: Lines of text.
    """
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
