"""Loss of stage 2."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


class AnomalyLoss(nn.Module):
    """Cross-entropy of the U-Net's output, the paper's equation 2, and soft Dice.

    Args:
        dice_weight: of the soft Dice loss, over all pixels of a batch. The paper has none: 0.
    """

    def __init__(self, dice_weight: float = 1.0) -> None:
        super().__init__()
        self.dice_weight = dice_weight
        self.dice = DiceLoss(sigmoid=True, batch=True)

    def forward(self, outputs: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Scalar loss.

        Args:
            outputs: (B, 2, H, W), reconstruction and logit of anomaly; only the second is learned.
            label: (B, 1, H, W), 0 or 1.

        Raises:
            ValueError: if the shapes do not fit.
        """
        logits = outputs[:, 1:]
        if logits.shape != label.shape:
            raise ValueError(f"outputs {tuple(outputs.shape)} and label {tuple(label.shape)} do not fit")
        loss = binary_cross_entropy_with_logits(logits, label)
        return loss + self.dice_weight * self.dice(logits, label) if self.dice_weight else loss
