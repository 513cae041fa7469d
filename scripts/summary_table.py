"""Put the summary of all evidence into the README: ``python scripts/summary_table.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import fire

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from study.evidence import put_between, read, summary_table, write_page

from common.errors import InputError, install_error_hook
from common.transforms.io import write_atomically

MARKER = "evidence"


def main(
    check: bool = False, readme: str = str(ROOT / "README.md"), evidence_dir: str = str(ROOT / "docs" / "evidence")
) -> None:
    """Write the table between ``<!-- evidence -->`` and ``<!-- /evidence -->``, and every evidence page anew.

    Args:
        check: write nothing, and fail if the table is another one.
        readme: the page.
        evidence_dir: folder of the JSON files of the bundles.
    """
    install_error_hook()
    path, folder = Path(readme), Path(evidence_dir)
    text = path.read_text(encoding="utf-8")
    bundles = sorted(metadata.parents[1].name for metadata in (ROOT / "bundles").glob("*/configs/metadata.json"))
    wanted = put_between(text, summary_table(read(folder, bundle) for bundle in bundles), MARKER)
    if check:
        if wanted != text:
            raise InputError(f"{path} has another summary than {folder}; run python scripts/summary_table.py")
        return
    for evidence in sorted(folder.glob("*.json")):
        write_page(folder, evidence.stem)
    write_atomically(path, lambda part: part.write_text(wanted, encoding="utf-8"))


if __name__ == "__main__":
    fire.Fire(main)
