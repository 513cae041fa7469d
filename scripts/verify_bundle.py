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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.options import types as t
from release.verification import verify_bundle
from running.command_line import run_command


def main(
    bundle: t.Existing,
    datalist_file: t.File | None = None,
    model_info: t.File | None = None,
    use_trace: t.Flag | None = None,
) -> None:
    """Verify a package; prints a line for each check, ends with exit code 1 if one failed.

    Args:
        bundle: zip or folder of the package.
        datalist_file: JSON of cases to run the bundle on; a small phantom by default.
        model_info: the model zoo's list of versions that are out already.
        use_trace: TorchScript is made by trace and not by script; by default as the bundle of this name says.
    """
    results = verify_bundle(bundle, datalist_file, model_info, use_trace)
    for result in results:
        print(result)
    if any(result.failures for result in results):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
