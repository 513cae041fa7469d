"""Where a training begins, and what it returns to if it has made things worse."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from common.engines.checkpoints import save_tensors

from .loss import EvidenceLowerBound
from .network import SegmentationAutoencoder

VARIANCE_FLOOR = 1e-3

logger = logging.getLogger(__name__)


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


class KeepBetter:
    """After a training, put the earlier weights back if those it has kept explain the scans worse.

    A training on a scan or a handful may lose a class altogether. Before and after are compared by
    :meth:`EvidenceLowerBound.of_segmentation`, which needs no label, as a mean over whole scans.

    Args:
        network: encoder and decoder. Before is how handlers of the start that stand above this one leave it.
        loss: of the training.
        data_loader: whole scans; its batches have "image", (B, images + classes, *spatial).
        encoder_path: weights that the training keeps.
        decoder_path: likewise.
    """

    def __init__(
        self,
        network: SegmentationAutoencoder,
        loss: EvidenceLowerBound,
        data_loader: Iterable[Mapping[str, torch.Tensor]],
        encoder_path: str | Path,
        decoder_path: str | Path,
    ) -> None:
        self.network, self.loss, self.data_loader = network, loss, data_loader
        self.files = {Path(encoder_path): network.encoder, Path(decoder_path): network.decoder}
        self._weights: dict[Path, dict[str, torch.Tensor]] = {}
        self._before = 0.0

    def attach(self, engine: Engine) -> None:
        """Register at the start and at the end of the trainer."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self._weights = {
            path: {key: value.detach().cpu().clone() for key, value in part.state_dict().items()}
            for path, part in self.files.items()
        }
        self._before = self._mean_loss()

    def _completed(self, engine: Engine) -> None:
        idist.barrier()  # rank 0 writes what all read
        for path, part in self.files.items():
            part.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        after = self._mean_loss()
        better = after < self._before  # not so if it is no number
        if idist.get_rank() == 0:
            result = "the weights of after are kept" if better else "the weights of before are put back"
            log = logger.info if better else logger.warning
            log("loss of the segmentations before %.4f, after %.4f: %s", self._before, after, result)
        if not better:
            for path, part in self.files.items():
                part.load_state_dict(self._weights[path])
                if idist.get_rank() == 0:
                    save_tensors(self._weights[path], path)

    @torch.no_grad()
    def _mean_loss(self) -> float:
        """Nats per voxel of the segmentations that the encoder makes, mean over scans."""
        encoder = self.network.encoder
        total = torch.zeros(2, dtype=torch.float64, device=encoder.output.weight.device)
        for batch in self.data_loader:
            for scan in batch["image"].to(total.device).split(1):
                total += torch.stack([self.loss.of_segmentation(encoder(scan), scan), total.new_ones(())])
        if idist.get_world_size() > 1:
            total = idist.all_reduce(total)
        return (total[0] / total[1]).item()
