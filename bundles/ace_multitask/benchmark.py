"""Losses of ace_multitask beside MONAI's plain cross entropy and Dice: ``scripts/benchmark.py step ace_multitask``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.losses import DiceCELoss

from ace_multitask.label_sets import LabelSets
from ace_multitask.loss import OBJECTIVES, make_loss

PLAIN = "DiceCELoss"
NAMES = (PLAIN, *OBJECTIVES)


def step(name: str, shape: Sequence[int] = (96, 96, 96), batch: int = 2, device: str = "cpu") -> Callable[[], None]:
    """Forward and backward of a loss of five classes on random logits, as a function without arguments.

    Labels are of full tables for the plain loss, else in turn of the two data sets.
    """
    tissue = {"labels": {"1": "CSF", "2": "GM", "3": "WM"}, "background_is_complete": True}
    datasets = {"tissue": tissue, "lesion": {"labels": {"1": "lesion"}}}
    torch.manual_seed(0)
    logits = torch.randn(batch, 5, *shape, device=device, requires_grad=True)
    if name == PLAIN:
        loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
        labels = torch.randint(0, 5, (batch, 1, *shape), device=device)
    else:
        loss = make_loss(name, LabelSets(["background", "CSF", "GM", "WM", "lesion"], datasets)).to(device)
        codes = [
            torch.randint(*((1, 5) if i % 2 == 0 else (5, 7)), (1, 1, *shape), device=device) for i in range(batch)
        ]
        labels = torch.cat(codes).to(torch.uint8)

    def work() -> None:
        logits.grad = None
        loss(logits, labels).backward()

    return work
