"""Say how far volumes can be trusted: intervals from scans with references, for inference to write.

Usage, from the root of the repository, after inference with evaluate.json on scans that nothing was chosen on:

    python scripts/calibrate_volumes.py RESULTS --output_file intervals.json
    python scripts/calibrate_volumes.py RESULTS --output_file intervals.json --datalist_file cases.json \\
        --section validation --check_dir OTHER_RESULTS --check_section test

Inference takes the file as ``--intervals_file intervals.json`` and writes the ends of the intervals into volumes.tsv
and its page. They hold for the same weights, threshold and options only; others are refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import Datalist
from common.files import write_json
from common.options import types as t
from labels.volumes import calibrate, coverage, read_results, references_of, reliabilities, write_picture
from running.command_line import run_command


def main(
    results_dir: t.ExistingFolder,
    output_file: t.NewFile = "intervals.json",
    level: t.ShareBelowOne = 0.9,
    datalist_file: t.File | None = None,
    section: t.Text | None = None,
    check_dir: t.ExistingFolder | None = None,
    check_section: t.Text | None = None,
) -> None:
    """Write intervals of the volumes that a bundle finds, and print how often they hold elsewhere.

    Args:
        results_dir: what inference with evaluate.json wrote for scans with references, a person in ten or more.
        output_file: JSON for --intervals_file; with a datalist a picture beside it, <name>_reliability.png.
        level: share of the scans whose volume lies in its interval.
        datalist_file: JSON of the cases, for their labels: the map is scaled to mean what it says.
        section: its part with the cases of results_dir.
        check_dir: results of other scans, made in the same way, to count how often the intervals hold there.
        check_section: part of the datalist with the cases of check_dir.
    """
    datalist = None if datalist_file is None else Datalist(datalist_file)
    results, others = read_results(results_dir), None if check_dir is None else read_results(check_dir)
    references = {} if datalist is None else references_of(results, datalist, section)
    elsewhere = {} if datalist is None or others is None else references_of(others, datalist, check_section)
    intervals = calibrate(results, level, references)
    checked = [] if others is None else coverage(intervals, others, elsewhere)
    write_json(output_file, intervals.as_dict())
    print(f"{output_file}: {intervals.data}")
    for label, scaling in intervals.scalings.items():
        before, after = reliabilities(results, references, scaling)
        write_picture(Path(output_file).with_name(f"{Path(output_file).stem}_reliability.png"), before, after)
        print(f"{label}: calibration error of the map {before.error:.4f}, scaled {after.error:.4f}")
    for found in checked:
        print(found.sentence(level))


if __name__ == "__main__":
    run_command(main)
