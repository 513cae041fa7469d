"""Pack one bundle into a zip that runs alone.

Usage, from the root of the repository:

    python scripts/package_bundle.py NAME --output_dir packages
    python scripts/package_bundle.py NAME --output_dir packages --large_files https://example.org/NAME

The second is the form for a pull request to the model zoo: without the weights, which lie below the given address.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import install_error_hook
from release.packaging import package_bundle


def main(name: str, output_dir: str, large_files: str | None = None) -> str:
    """Pack the bundle ``name`` into ``output_dir``, with an address below ``large_files`` for each of its weights."""
    install_error_hook()
    return str(package_bundle(name, output_dir, large_files))


if __name__ == "__main__":
    fire.Fire(main)
