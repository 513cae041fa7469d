"""Pack one bundle into a zip that runs alone.

Usage, from the root of the repository:

    python scripts/package_bundle.py NAME --output_dir packages
    python scripts/package_bundle.py NAME --output_dir packages --large_files https://example.org/NAME

The second is the form for a pull request to the model zoo: without the weights, which lie below the given address.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.options import types as t
from release.packaging import package_bundle
from running.command_line import Bundle, run_command


def main(bundle: Bundle, output_dir: t.Folder, large_files: t.Text | None = None) -> str:
    """Pack a bundle; prints the path of the zip.

    Args:
        bundle: its name.
        output_dir: of the zip.
        large_files: address below which its weights can be downloaded; the zip then has none.
    """
    return str(package_bundle(bundle, output_dir, large_files))


if __name__ == "__main__":
    run_command(main)
