"""What the shipped weights, and the baselines beside them, score on real scans: ``python scripts/score_release.py``.

    python scripts/score_release.py NAME --real_data real.json
    python scripts/score_release.py all --real_data real.json --registration_subjects 4

Figures go to docs/evidence, one file per bundle. Started again, it goes on where it was; docs/real_scans.md says more.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from catalog import bundle_names, describe
from common.errors import InputError
from common.files import Alone
from common.options import types as t
from running.command_line import run_command
from study import evidence
from study.real_scans import Scoring
from study.scan_sets import read_real_scans

logger = logging.getLogger("score_release")


def main(
    bundle: t.Text,
    real_data: t.File,
    output_dir: t.Folder = "real_scans",
    evidence_dir: t.Folder = "docs/evidence",
    registration_subjects: t.Count | None = None,
    device: t.Device | None = None,
) -> None:
    """Predict, score the files that were written, and write EVIDENCE_DIR/<bundle>.json.

    Args:
        bundle: name of a bundle, or all.
        real_data: JSON of sets of scans, see docs/real_scans.md.
        output_dir: masks, maps and adapted weights, to go on with.
        evidence_dir: of the figures.
        registration_subjects: register the ordered pairs of so many first subjects of a set; all by default.
        device: cpu, cuda:0, ...; by default what the bundles say.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for name in ("score_release", "study", "common.engines"):
        logging.getLogger(name).setLevel(logging.INFO)
    chosen = choose(bundle)
    if registration_subjects is not None and not (isinstance(registration_subjects, int) and registration_subjects > 1):
        raise InputError(f"registration_subjects is {registration_subjects!r}, expected 2 or more")
    scoring = Scoring(
        read_real_scans(real_data),
        Path(output_dir).resolve(),
        ROOT / "bundles",
        registration_subjects,
        device=device,
    )
    with Alone(output_dir):
        write(scoring, chosen, Path(evidence_dir))


def choose(bundle: str) -> list[str]:
    """One bundle or all of them; InputError if there is none of that name."""
    names = bundle_names()
    if bundle not in (*names, "all"):
        raise InputError(f"bundle is {bundle!r}, expected {', '.join(names)} or all")
    return names if bundle == "all" else [bundle]


def write(scoring: Scoring, bundles: list[str], evidence_dir: Path) -> None:
    """Score bundles one by one and write the figures of each when they are known.

    Raises:
        InputError: before anything is run, if no set fits one of them.
    """
    for bundle in bundles:
        scoring.data.sets_of(bundle)
    for number, bundle in enumerate(bundles, start=1):
        logger.info("%d of %d: %s", number, len(bundles), bundle)
        start = time.monotonic()
        content = {
            "command": command(bundle, scoring),
            "machine": evidence.machine(scoring.device),
            "version": scoring.metadata(bundle)["version"],
            "sets": scoring.tables(bundle),
        }
        evidence.update(evidence_dir, bundle, "real_scans", content)
        logger.info("%s: %s in %.0f s", bundle, evidence_dir / f"{bundle}.json", time.monotonic() - start)


def command(bundle: str, scoring: Scoring) -> str:
    """What gives the figures again, without the folders of this machine."""
    words = ["python", "scripts/score_release.py", bundle, "--real_data", scoring.data.path.name]
    if describe(bundle, scoring.bundles).registration and scoring.registration_subjects is not None:
        words += ["--registration_subjects", str(scoring.registration_subjects)]
    return shlex.join(words)


if __name__ == "__main__":
    run_command(main)
