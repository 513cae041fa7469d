"""Whether a scan looks like the sequence that it is called."""

import numpy as np

# percentile of the brain -> its usual range, the median being 1: what scripts/benchmark.py contrast says of training
# scans of five sources (T1w 1.06 to 1.36 and 1.12 to 1.68, FLAIR 1.07 to 1.19 and 1.16 to 1.51), and some more; of T2w
# the second is 1.66 to 2.23 there
USUAL_CONTRAST = {
    "T1w": {75: (1.03, 1.42), 95: (1.08, 1.75)},
    "FLAIR": {75: (1.04, 1.23), 95: (1.1, 1.58)},
}


def unlike(image: np.ndarray, brain: np.ndarray, sequence: str) -> str:
    """What the percentiles are, as "1.06 and 1.22", where bright tissue is not as bright as usual; else nothing.

    Args:
        image: intensities from 0 up, (X, Y, Z); of others, as of scans with z-scores, nothing can be said.
        brain: bool, same shape.
        sequence: BIDS' name of what it should be; of those without a usual range nothing is said.
    """
    values, usual = image[brain], USUAL_CONTRAST.get(sequence, {})
    if not usual or not values.size or values.min() < 0 or np.median(values) == 0:
        return ""
    shares = np.percentile(values, [*usual]) / np.median(values)
    is_usual = all(low <= share <= high for share, (low, high) in zip(shares, usual.values(), strict=True))
    return "" if is_usual else " and ".join(f"{share:.2f}" for share in shares)
