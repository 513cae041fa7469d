"""Begin a bundle: a supervised 3-D U-Net, T1w to tissues, that works with every tool and is there to be changed.

Usage, from the root of the repository:

    python scripts/new_bundle.py NAME

Writes ``bundles/NAME`` and ``tests/test_NAME.py``; ``docs/adding_a_bundle.md`` says how to go on. The files come from
``scripts/templates/bundle``, with the name instead of ``the_bundle``. The weights are random.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from catalog.new_bundle import new_bundle
from common.options import types as t
from running.command_line import run_command


def main(bundle: t.Text) -> None:
    """Write ``bundles/NAME`` and ``tests/test_NAME.py``; prints both and what to do next.

    Args:
        bundle: its name, small letters, digits and _.
    """
    for path in new_bundle(bundle):
        print(f"wrote {path.relative_to(ROOT)}")
    print(f"next: python -m pytest tests/test_{bundle}.py, then docs/adding_a_bundle.md")


if __name__ == "__main__":
    run_command(main)
