"""Two networks as one, the baseline that the paper calls Multi-UNet."""

from __future__ import annotations

import torch
from torch import nn

from .label_sets import LabelSets


class FusedNetworks(nn.Module):
    """A lesion network written over a tissue network, with the output of one network for all classes.

    A class that ``overlay`` annotates gets the probability that it has there; what ``overlay`` leaves to background is
    shared out as ``base`` has it. With a threshold of 0.5 on the overlaid class, and the largest probability among the
    others, that is the mask of ``overlay`` written over the map of ``base``.

    Args:
        base, overlay: networks with logits for the classes of ``label_sets.single(base_dataset)`` and
            ``label_sets.single(overlay_dataset)``. Their weights can be loaded into the attributes of these names.
        label_sets: the table.
        base_dataset, overlay_dataset: the data set that each was trained with.

    Raises:
        ValueError: if the two have a foreground class in common, or leave one out.

    Reference:
        Roulet et al., MIDL 2019, section 2: lesion masks are written over the tissue map.
    """

    def __init__(
        self, base: nn.Module, overlay: nn.Module, label_sets: LabelSets, base_dataset: str, overlay_dataset: str
    ) -> None:
        super().__init__()
        self.base = base
        self.overlay = overlay
        of_base, of_overlay = (
            [label_sets.classes.index(name) for name in label_sets.single(dataset).classes]
            for dataset in (base_dataset, overlay_dataset)
        )
        if sorted([*of_base, *of_overlay[1:]]) != list(range(len(label_sets.classes))) or of_overlay[0] != 0:
            names = [", ".join(label_sets.single(dataset).classes) for dataset in (base_dataset, overlay_dataset)]
            raise ValueError(f"the networks have {names[0]} and {names[1]}, expected each joint class in one of them")
        # where each joint class stands in the channels of base, followed by the foreground of overlay
        self.order = [[*of_base, *of_overlay[1:]].index(c) for c in range(len(label_sets.classes))]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logarithms of probabilities, (B, C, *spatial), of images (B, M, *spatial); a softmax gives these back."""
        base = self.base(image).float().log_softmax(1)
        overlay = self.overlay(image).float().log_softmax(1)
        return torch.cat([base + overlay[:, :1], overlay[:, 1:]], 1)[:, self.order]
