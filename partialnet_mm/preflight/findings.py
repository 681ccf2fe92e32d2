# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The results of a check of data."""
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

#: Number of findings of one kind that a report prints in full.
SHOWN = 5
#: Number of findings of one kind in one file that a check lists one by one.
LISTED = 50


class Finding(NamedTuple):
    """A defect of a data set or, as a ``note``, something that does not stop a training."""

    kind: str  # groups findings in a report, e.g. 'box outside'
    file: str  # the file or folder
    where: str  # in the file, e.g. 'annotation 7 of image 3 (a.jpg)'
    text: str
    note: bool = False
    count: int = 1  # number of defects that it stands for

    def __str__(self) -> str:
        where = f', {self.where}' if self.where else ''
        return f'{self.file}{where}: {self.text}'


def listed(kind: str, file: str, items: Sequence, where: Callable, text: Callable, note: bool = False) -> list[Finding]:
    """One finding for each item, and one for all those after the first :data:`LISTED`."""
    findings = [Finding(kind, file, where(item), text(item), note) for item in items[:LISTED]]
    if len(items) > LISTED:
        findings.append(Finding(kind, file, '', f'{len(items) - LISTED} more', note, len(items) - LISTED))
    return findings


def errors_in(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that must stop a training."""
    return [finding for finding in findings if not finding.note]


def stop_on_errors(findings: Sequence[Finding]) -> None:
    """Raises a ValueError with the report if a training must not start."""
    errors = sum(finding.count for finding in errors_in(findings))
    if errors:
        raise ValueError(f'{errors} errors in the data; no training was started\n{format_findings(findings)}')


def format_findings(findings: Sequence[Finding]) -> str:
    """A report of several lines: errors first, at most :data:`SHOWN` of each kind in full, and the number of others."""
    groups: dict[tuple, list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=lambda finding: finding.note):
        groups[finding.note, finding.kind].append(finding)
    lines = []
    for (note, kind), members in groups.items():
        shown, total = members[:SHOWN], sum(member.count for member in members)
        lines.append(f'{"note " if note else "ERROR"} {kind} ({total})')
        lines += [f'  {finding}' for finding in shown]
        more = total - sum(member.count for member in shown)
        if more:
            lines.append(f'  and {more} more')
    return '\n'.join(lines) or 'nothing wrong was found'
