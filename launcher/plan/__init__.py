"""The plan of a job: what it is and whether it can work, in pure Python without torch."""

from __future__ import annotations

from launcher.records import dataclass


@dataclass(frozen=True)
class Finding:
    """One line about a job: an error stops its submission, a warning does not."""

    severity: str  # "error" or "warning"
    message: str  # what is wrong, what is allowed, where it was set
    rule: str  # the rule or check that found it
