"""The figures that documents quote: one JSON per bundle, whose keys are written by the scripts that measure them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def update(evidence_dir: Path, bundle: str, key: str, content: dict[str, Any]) -> None:
    """Replace what one script says of a bundle, and leave the rest; the file appears whole or not at all.

    Args:
        evidence_dir: folder of the files, made if need be.
        bundle: name of the bundle, and of the file.
        key: of the script.
        content: for JSON.
    """
    path = evidence_dir / f"{bundle}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    evidence_dir.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(known | {key: content}, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
