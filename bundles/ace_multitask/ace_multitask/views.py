"""Lesions as seen with and without a sequence."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer


class TwoViewsInferer(Inferer):
    """Lesion probability as the mean of what the network says with all sequences, and with one of them left out.

    T1w hardly shows some lesions, and a network that trusts it misses them. The other classes share the rest of the
    probability as they do with all sequences. Twice the time.

    Args:
        inferer: how the network runs over an image.
        lesion_class: channel of the network's output.
        channel: of the image, what is left out.
        enabled: False runs the network on the whole scan alone.

    Returns:
        Logits, (B, C, *spatial); what the network says, for a scan without the sequence or with no other one.
    """

    def __init__(self, inferer: Inferer, lesion_class: int, channel: int = 0, enabled: bool = True) -> None:
        super().__init__()
        self.inferer = inferer
        self.lesion_class = lesion_class
        self.channel = channel
        self.enabled = enabled

    @property
    def sw_batch_size(self) -> int | None:
        """Windows per call of the network, of inferers that have it."""
        return getattr(self.inferer, "sw_batch_size", None)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``inputs`` (B, M, *spatial) -> logits of two views."""
        logits = self.inferer(inputs, network, *args, **kwargs)
        others = inputs.clone()
        others[:, self.channel] = 0
        if not self.enabled or not inputs[:, self.channel].any() or not others.any():
            return logits
        views = (logits, self.inferer(others, network, *args, **kwargs))
        lesion = sum(view.float().softmax(1)[:, self.lesion_class] for view in views) / 2
        rest = logits.float().clone()
        rest[:, self.lesion_class] = -torch.inf
        combined = rest.log_softmax(1) + torch.log1p(-lesion.clamp(max=1 - 1e-6))[:, None]
        combined[:, self.lesion_class] = lesion.clamp(min=1e-30).log()
        return combined
