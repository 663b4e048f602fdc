"""What a job is and whether it can work, said before it is submitted: pure Python, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line about a job: an error stops its submission, a warning does not."""

    severity: str  # "error" or "warning"
    message: str  # what is wrong, what is allowed, where it was set
    rule: str  # who says so
