"""Make the checks of the model zoo's own verification on a packaged bundle, without the network.

Usage, from the root of the repository:

    python scripts/verify_bundle.py packages/NAME_vVERSION.zip
    python scripts/verify_bundle.py packages/NAME_vVERSION.zip --datalist_file cases.json

Prints a line for each check, and ends with exit code 1 if one of them failed. The code of the bundle is run, so verify
only what comes from somebody you trust.
"""

from __future__ import annotations

import sys
from pathlib import Path

import fire

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import install_error_hook
from release.verification import verify_bundle


def main(
    path: str, datalist_file: str | None = None, model_info: str | None = None, use_trace: bool | None = None
) -> None:
    """Verify the package at ``path``; prints a line for each check, ends with exit code 1 if one failed."""
    install_error_hook()
    results = verify_bundle(path, datalist_file, model_info, use_trace)
    for result in results:
        print(result)
    if any(result.failures for result in results):
        sys.exit(1)


if __name__ == "__main__":
    fire.Fire(main)
