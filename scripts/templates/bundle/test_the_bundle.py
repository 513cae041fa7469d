"""What ``the_bundle`` promises beside what all bundles do; see ``test_bundles.py`` for that."""

from __future__ import annotations

from pathlib import Path

import torch
from bundle_tools import network

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "the_bundle"


def test_every_voxel_gets_a_logit_of_every_class():
    with torch.no_grad():
        logits = network(BUNDLE)(torch.rand(2, 1, 24, 16, 32))
    assert logits.shape == (2, 4, 24, 16, 32)
