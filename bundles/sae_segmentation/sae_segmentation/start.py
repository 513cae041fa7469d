"""Where a training begins: at the intensities that the atlas, or weights of before, find for each class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from .network import SegmentationAutoencoder

VARIANCE_FLOOR = 1e-3


class StartAtClassMeans:
    """Before a training, let the decoder begin with the mean intensity of every class, and the encoder with Gaussians.

    Classes are those of the encoder's own segmentation of the training scans. A fresh encoder gives the atlas back, so
    that its skip of intensities then is the expectation step of a mixture of Gaussians; weights that were loaded give
    what they have learned, and are left as they are. From random weights the loss hardly moves: as long as the decoder
    knows no class, no voxel has a reason to change its own.

    Args:
        network: encoder and decoder.
        data_loader: of the training; its batches have "image", (B, images + classes, *spatial).
        encoder_too: False if the encoder has weights already.
    """

    def __init__(
        self,
        network: SegmentationAutoencoder,
        data_loader: Iterable[Mapping[str, torch.Tensor]],
        encoder_too: bool = True,
    ) -> None:
        self.network, self.data_loader, self.encoder_too = network, data_loader, encoder_too

    def attach(self, engine: Engine) -> None:
        """Register at the start of the trainer."""
        engine.add_event_handler(Events.STARTED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Take a look at one epoch of scans and set the weights."""
        encoder = self.network.encoder
        classes, images = encoder.classes, encoder.images
        device = encoder.output.weight.device
        totals = torch.zeros(classes, 1 + 2 * images, dtype=torch.float64, device=device)
        for batch in self.data_loader:
            scan = batch["image"].to(device)
            image, prior = scan.split([images, classes], dim=1)
            weight = encoder(scan).softmax(1) * prior.sum(1, keepdim=True)  # padding has no prior
            moments = torch.cat([torch.ones_like(image[:, :1]), image, image.square()], dim=1)
            totals += torch.einsum("bkxyz,bmxyz->km", weight, moments)
        if idist.get_world_size() > 1:
            totals = idist.all_reduce(totals)
        voxels, first, second = totals.split([1, images, images], dim=1)
        mean = first / voxels.clamp(min=1)
        variance = (second / voxels.clamp(min=1) - mean.square()).clamp(min=VARIANCE_FLOOR)
        self.network.decoder.start_at(mean.float())
        if self.encoder_too:
            encoder.start_at(mean.float(), variance.float())
