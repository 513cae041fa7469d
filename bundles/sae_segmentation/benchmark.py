"""A training step with the Markov random field and without: ``scripts/benchmark.py step sae_segmentation``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sae_segmentation.loss import EvidenceLowerBound
from sae_segmentation.network import ImageDecoder, SegmentationAutoencoder, SegmentationEncoder

NAMES = ("without field", "with field")
BETA = 0.005  # as in train.json


def step(
    name: str, shape: Sequence[int] = (64, 64, 64), batch: int = 2, classes: int = 4, device: str = "cpu"
) -> Callable[[], None]:
    """One step on random scans, past the warm-up, as a function without arguments; ``classes`` with background."""
    torch.manual_seed(0)
    prior = torch.rand(batch, classes, *shape).softmax(1)
    scan = torch.cat([torch.rand(batch, 1, *shape), prior], 1).to(device)
    network = SegmentationAutoencoder(SegmentationEncoder(classes), ImageDecoder(classes)).to(device)
    beta = BETA if name == "with field" else 0.0
    table = torch.randn(classes, classes).tolist() if beta else None
    loss = EvidenceLowerBound(classes, table, beta, warmup=0).to(device)
    optimizer = torch.optim.Adam(network.parameters())

    def work() -> None:
        optimizer.zero_grad()
        loss(network(scan), scan).backward()
        optimizer.step()

    return work
