"""Put evidence and descriptions into the pages that quote them: ``python scripts/render_evidence.py``.

From ``docs/evidence/<bundle>.json`` come the page beside it, the table in the README and the claims in the model card;
from ``bundles/<bundle>/description.py`` its section in the README.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from catalog import Description, descriptions
from common.errors import InputError
from common.files import write_text
from common.options import types as t
from running.command_line import run_command
from study.evidence import claims_of_card, put_between, read, render, summary_table


def main(check: t.Flag = False, root: t.ExistingFolder = str(ROOT)) -> None:
    """Write the pages again.

    Args:
        check: write nothing, and fail if a page says something else than evidence and descriptions.
        root: folder of ``README.md``, ``bundles`` and ``docs/evidence``.
    """
    for path, text in pages(Path(root)).items():
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            raise InputError(f"{path} differs from the evidence; run python scripts/render_evidence.py")
        if not check:
            write_text(path, text)


def pages(root: Path) -> dict[Path, str]:
    """Path -> what it should say."""
    described = descriptions(root / "bundles")
    evidence = {name: read(root / "docs" / "evidence", name) for name in described}
    readme = root / "README.md"
    text = put_between(readme.read_text(encoding="utf-8"), summary_table(evidence.values()), "evidence")
    sections = "\n\n".join(section_of(description) for description in described.values())
    found = {readme: put_between(text, sections, "bundles")}
    for name, content in evidence.items():
        card = root / "bundles" / name / "docs" / "README.md"
        found[card] = put_between(card.read_text(encoding="utf-8"), claims_of_card(content), "claims")
        if content.keys() - {"bundle"}:
            found[root / "docs" / "evidence" / f"{name}.md"] = render(content)
    return found


def section_of(description: Description) -> str:
    """Section of the README about a bundle."""
    name = description.name
    return f"### `{name}`\n\n{description.summary}\n[Model card](bundles/{name}/docs/README.md)"


if __name__ == "__main__":
    run_command(main)
