"""Learn from validation scans how to join several methods, and whether it beats the best one.

Usage, from the root of the repository, after inference of each method into a folder of its own:

    python scripts/fit_fusion.py --datalist_file cases.json --section validation --results results/uad,results/ace

It prints the pooled Dice of each method alone and of each way to join them: weights of the maps' logits, the mean of
the scaled maps, STAPLE of the masks. scripts/fuse_results.py joins others.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import Datalist
from common.files import write_json
from common.options import types as t
from labels.fusion import METHODS, RESULTS, as_dict, cases_of, fit
from running.command_line import run_command


def main(
    datalist_file: t.File,
    results: RESULTS,
    section: t.Text | None = None,
    output_file: t.NewFile = "fusion.json",
) -> None:
    """Learn from validation scans how to join methods, and print how good each way is there.

    Args:
        datalist_file: JSON of the cases, with labels.
        results: a folder of inference for each method, with maps.
        section: part of the datalist; of people that nothing else was chosen on.
        output_file: JSON for fuse_results.py.
    """
    datalist = Datalist(datalist_file)
    cases = cases_of(datalist, section, results, labels=True)
    fusion = fit(cases, f"{len(cases)} scans, {section or Path(datalist_file).stem}")
    write_json(output_file, as_dict(fusion))
    for way, dice in sorted(fusion.dice.items(), key=lambda item: -item[1]):
        print(f"{way}: pooled Dice {dice:.3f}{', joined' if way in METHODS else ''}")
    print(f"{output_file}: {fusion.best} is the best on {fusion.data}")


if __name__ == "__main__":
    run_command(main)
