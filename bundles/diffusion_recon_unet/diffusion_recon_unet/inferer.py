"""How slices get their noise: one random level each in training, fixed levels and a seed on whole volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.inferers import Inferer

from .noise import FractalNoise


class NoisyInferer(Inferer):
    """Call a network of slices with one fresh noise field and one noise level for each slice.

    Args:
        noise: where the fields come from.
        levels: noise levels are drawn from this range, the second number not included.
        seed: always draw the same; None draws from PyTorch's global generator.
    """

    def __init__(self, noise: FractalNoise, levels: Sequence[int] = (0, 1000), seed: int | None = None) -> None:
        super().__init__()
        self.noise = noise
        self.levels = levels
        self.seed = seed

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Output of the network for slices (B, 1, H, W) with noise, and noise levels (B, 1)."""
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        fields = self.noise(len(inputs), tuple(inputs.shape[2:]), inputs.device, generator)
        timesteps = torch.randint(*self.levels, (len(inputs), 1), generator=generator).to(inputs.device)
        return network(torch.cat([inputs, fields[:, None]], dim=1), timesteps)


class VolumeInferer(Inferer):
    """Call a network of slices on the axial slices of a volume that show brain, with noise that the seed decides.

    Args:
        noise: where the fields come from.
        fields: noise fields per slice, one for each noise level of the network.
        seed: of the noise; the same for every volume.
        sw_batch_size: slices per call of the network.
        outside: value of every output channel in slices without brain.
    """

    def __init__(
        self,
        noise: FractalNoise,
        fields: int = 3,
        seed: int = 0,
        sw_batch_size: int = 16,
        outside: Sequence[float] = (0.0, -20.0),
    ) -> None:
        super().__init__()
        self.noise = noise
        self.fields = fields
        self.seed = seed
        self.sw_batch_size = sw_batch_size
        self.outside = outside

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Output (B, C, X, Y, Z) for volumes (B, 1, X, Y, Z), 0 outside the brain.

        Raises:
            ValueError: if the network has more or fewer outputs than there are values of ``outside``.
        """
        slices = inputs.movedim(-1, 1).flatten(0, 1)  # (B Z, 1, X, Y)
        shown = (slices != 0).flatten(1).any(1).nonzero()[:, 0]
        size = tuple(slices.shape[2:])
        generator = torch.Generator().manual_seed(self.seed)
        fields = self.noise(len(shown) * self.fields, size, inputs.device, generator)
        noisy = torch.cat([slices[shown], fields.reshape(len(shown), self.fields, *size)], dim=1)
        outputs = inputs.new_tensor(self.outside)[:, None, None].repeat(len(slices), 1, *size)
        for indices, batch in zip(shown.split(self.sw_batch_size), noisy.split(self.sw_batch_size), strict=True):
            found = network(batch)
            if found.shape[1] != len(self.outside):
                raise ValueError(f"the network has {found.shape[1]} outputs, expected {len(self.outside)}")
            outputs[indices] = found.to(outputs.dtype)
        return outputs.unflatten(0, (len(inputs), -1)).movedim(1, -1)
