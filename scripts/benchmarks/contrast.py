"""How bright tissue is in scans of a sequence: what ``contrast unlike FLAIR`` is told from."""

from __future__ import annotations

from common.options import types as t


def contrast(datalist_file: t.File, sequence: t.Text, section: t.Text | None = None) -> None:
    """Percentiles of the brain of which :data:`common.sequences.USUAL_CONTRAST` has ranges, the median being 1.

    Args:
        datalist_file: JSON of scans, skull-stripped or with brain masks.
        sequence: of them that is looked at.
        section: of the JSON; all by default.
    """
    import numpy as np

    from common.data import Datalist
    from common.scans import as_mask, foreground, read_scan
    from common.sequences import USUAL_CONTRAST

    percentiles = sorted({value for usual in USUAL_CONTRAST.values() for value in usual})
    shares = []
    for case in Datalist(datalist_file).cases((sequence,), section):
        image, mask = read_scan(case["image"])[0], case.get("brain_mask")
        values = image[foreground(image) if mask is None else as_mask(read_scan(mask)[0], mask)]
        shares.append(np.percentile(values, percentiles) / np.median(values))
    for number, values in zip(percentiles, np.transpose(shares), strict=True):
        print(
            f"{number} %: {values.min():.2f} to {values.max():.2f}, median {np.median(values):.2f}, {len(values)} scans"
        )
