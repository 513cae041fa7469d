"""Sequences of MRI: what they are called, and what they look like."""

import re

import numpy as np

# what files call a sequence, in upper or lower case
SEQUENCES = {"T1w": r"t1w?|(?:t1w?[-_]?)?mp-?rage", "T2w": "t2w?", "PDw": "pdw?", "FLAIR": r"(?:t2w?[-_]?)?flair"}
# percentile of the brain -> its usual range, the median being 1: what scripts/benchmark.py contrast says of training
# scans of five sources (T1w 1.06 to 1.36 and 1.12 to 1.68, FLAIR 1.07 to 1.19 and 1.16 to 1.51), and some more; of T2w
# the second is 1.66 to 2.23 there
USUAL_CONTRAST = {
    "T1w": {75: (1.03, 1.42), 95: (1.08, 1.75)},
    "FLAIR": {75: (1.04, 1.23), 95: (1.1, 1.58)},
}


def sequence_name(name: str) -> str:
    """BIDS' name of a sequence, as T1w for T1 or MPRAGE, FLAIR for t2_flair; any other name as it is."""
    return next((known for known, names in SEQUENCES.items() if re.fullmatch(names, name, re.IGNORECASE)), name)


def contrast_difference(image: np.ndarray, brain: np.ndarray, sequence: str) -> str:
    """In words how a scan differs from usual ones in how bright bright tissue is, against the median; or nothing.

    Args:
        image: intensities from 0 up, (X, Y, Z); of others, as of scans with z-scores, nothing can be said.
        brain: bool, same shape.
        sequence: any name of what it should be; of those without a usual range nothing is said.
    """
    name = sequence_name(sequence)
    values, usual = image[brain], USUAL_CONTRAST.get(name, {})
    if not usual or not values.size or values.min() < 0:
        return ""
    median, *bright = np.percentile(values, [50, *usual])
    if median == 0 or all(low <= x / median <= high for x, (low, high) in zip(bright, usual.values(), strict=True)):
        return ""
    found, ranges = (f"{x / median:.2f}" for x in bright), (f"{low:g} to {high:g}" for low, high in usual.values())
    return (
        f"a contrast unlike {name}: percentiles {' and '.join(map(str, usual))} of the brain are {' and '.join(found)} "
        f"times its median, usual are {' and '.join(ranges)}"
    )
