"""Write docs/options.md: every option of the bundles and of the scripts, from the configs and the signatures.

Usage, from the root of the repository:

    python scripts/render_options.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import InputError
from common.files import write_text
from common.options import types as t
from running.command_line import run_command
from running.options_page import PAGE, page


def main(check: t.Flag = False) -> None:
    """Write the page again.

    Args:
        check: write nothing, and fail if the page says something else than the code.
    """
    text = page()
    if not check:
        write_text(PAGE, text)
    elif PAGE.read_text(encoding="utf-8") != text:
        raise InputError(f"{PAGE} differs from the code; run python scripts/render_options.py")


if __name__ == "__main__":
    run_command(main)
