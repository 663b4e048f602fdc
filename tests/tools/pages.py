"""The parts of the pages that the code writes: between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

python tests/tools/pages.py      renew them
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launcher.config import settings  # noqa: E402
from tests.tools import functional_memory, imports, plan_example  # noqa: E402


@dataclass(frozen=True)
class Part:
    """One generated part: the page it is on, and what writes it."""

    page: Path
    write: Callable[[], str]


PARTS: Mapping[str, Part] = {
    "plan": Part(ROOT / "README.md", plan_example.text),
    "variables": Part(ROOT / "design_docs" / "variables.md", settings.table),
    "imports": Part(ROOT / "design_docs" / "architecture.md", lambda: imports.picture(imports.imports())),
    "functional memory": Part(ROOT / "design_docs" / "evidence.md", functional_memory.table),
}  # fmt: skip


def renewed(name: str) -> str:
    """Return the text of a part's page as it should be. Raises ValueError without the markers."""
    part = PARTS[name]
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = part.page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{part.page} has no markers for {name}")
    return f"{before}{begin}{part.write()}\n{end}{after}"


def main() -> None:
    """Renew all parts."""
    for name, part in PARTS.items():
        part.page.write_text(renewed(name), encoding="utf-8")


if __name__ == "__main__":
    main()
