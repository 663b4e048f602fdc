"""What Megatron's own function counts for the test's jobs, in every release that is checked out.

    .venv/training/bin/python tests/tools/flops_of_releases.py 0.15=CHECKOUT 0.16=CHECKOUT …

Writes tests/plan/flops_of_releases.json: by release and job, num_floating_point_operations of a
global batch. The release that is installed is asked by tests/plan/test_parameters.py itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [*(p for p in sys.path if p != str(Path(__file__).parent)), str(ROOT)]

from tests.plan.test_parameters import FLOPS_OF_RELEASES, megatrons_flops  # noqa: E402


def main() -> None:
    """Ask every checkout that is named on the command line."""
    found = {}
    for word in sys.argv[1:]:
        release, _, checkout = word.partition("=")
        found[release] = megatrons_flops(checkout)
        print(f"{release}: {len(found[release])} jobs")
    FLOPS_OF_RELEASES.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
