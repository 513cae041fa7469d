"""Networks of both stages: what gives the pseudo-healthy image, and the U-Net that looks at what it changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import BasicUNet, DiffusionModelUNet, ResNet
from monai.networks.schedulers import DDPMScheduler
from torch import nn
from torch.nn.functional import conv2d, softplus


class ConditionedDiffusion(nn.Module):
    """Stage 1: one pass from a noisy slice to the healthy slice, told by an encoder what the slice looks like.

    The slice is mixed with noise as in a diffusion process, the denoiser predicts the slice without noise (not the
    noise, and not in many steps), and a code of the clean slice is added to the embedding of the noise level.

    Args:
        channels: widths of the denoiser's levels. The code behind the paper has (128, 256, 256).
        num_res_blocks: residual blocks per level; there 3.
        norm_num_groups: of its group normalization.
        num_head_channels: of the attention in its middle.
        encoder_channels: widths of the ResNet (one block per level) that makes the code; there a ResNet-50.
        condition_channels: length of the code.
        num_timesteps: noise levels of the process, with the cosine schedule.
        levels: the noise levels of :meth:`forward` where none are given.

    Reference:
        Behrendt et al., "Combining Reconstruction-based Unsupervised Anomaly Detection with Supervised Segmentation for
        Brain MRIs", MIDL 2024; "Guided reconstruction with conditioned diffusion models", arXiv:2312.04215.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 64),
        num_res_blocks: int = 1,
        norm_num_groups: int = 8,
        num_head_channels: int = 32,
        encoder_channels: Sequence[int] = (16, 32, 64, 128),
        condition_channels: int = 128,
        num_timesteps: int = 1000,
        levels: Sequence[int] = (249, 499, 749),
    ) -> None:
        super().__init__()
        scheduler = DDPMScheduler(num_timesteps, schedule="cosine")
        self.register_buffer("kept", scheduler.alphas_cumprod.float(), persistent=False)  # share of the slice's power
        self.register_buffer("levels", torch.as_tensor(levels), persistent=False)
        self.encoder = ResNet(
            "basic",
            [1] * 4,
            list(encoder_channels),
            spatial_dims=2,
            n_input_channels=1,
            conv1_t_size=7,
            conv1_t_stride=2,
            num_classes=condition_channels,
        )
        self.denoiser = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=tuple(channels),
            num_res_blocks=num_res_blocks,
            attention_levels=(False,) * len(channels),
            num_head_channels=num_head_channels,
            norm_num_groups=norm_num_groups,
            resblock_updown=True,
            num_class_embeds=1,
        )
        width = 4 * channels[0]  # of the denoiser's embedding
        self.denoiser.class_embedding = nn.Sequential(
            nn.Linear(condition_channels, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor | None = None) -> torch.Tensor:
        """Reconstructions at some noise levels.

        Args:
            noisy: (B, 1 + L, H, W), the slice in [0, 1] and L noise fields; H and W divisible by 4.
            timesteps: (B, L), the noise level of every field, counted from 0; ``levels`` by default.

        Returns:
            (B, L, H, W), about in [0, 1].
        """
        image, noise = noisy[:, :1], noisy[:, 1:]
        timesteps = self.levels.expand(noise.shape[:2]) if timesteps is None else timesteps
        kept = self.kept[timesteps][..., None, None]
        mixed = kept.sqrt() * (2 * image - 1) + (1 - kept).sqrt() * noise
        code = self.encoder(image).repeat_interleave(noise.shape[1], dim=0)  # once per slice, whatever the levels
        found = self.denoiser(mixed.flatten(0, 1)[:, None], timesteps.flatten(), class_labels=code)
        return (found.reshape(noise.shape) + 1) / 2


class DenoisingAutoencoder(nn.Module):
    """A light stage 1: a U-Net that takes coarse noise out of a slice, and sees the slice without noise in use.

    Args:
        features: widths of MONAI's ``BasicUNet``, five levels and the output's.
        strength: what the noise is multiplied with in training, in the unit of the slice.

    Reference:
        Kascenas et al., "Denoising autoencoders for unsupervised anomaly detection in brain MRI", MIDL 2022.
    """

    def __init__(self, features: Sequence[int] = (16, 16, 32, 64, 64, 16), strength: float = 0.3) -> None:
        super().__init__()
        self.strength = strength
        self.network = BasicUNet(
            spatial_dims=2, in_channels=1, out_channels=1, features=tuple(features), act="SWISH", norm="INSTANCE"
        )

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor | None = None) -> torch.Tensor:
        """As of :class:`ConditionedDiffusion`, with L = 1; there is one noise level only, ``timesteps`` is not used."""
        image, noise = noisy[:, :1], noisy[:, 1:2]
        return self.network(image + self.strength * noise * (image != 0) if self.training else image)


class SharedEncoderUNet(nn.Module):
    """Stage 2: a U-Net whose one encoder sees residual and slice apart; the decoder sees both at every level.

    Convolutions have standardized weights and reflected borders, each followed by SiLU and group normalization, with
    average pooling between the levels.

    Args:
        channels: widths of the encoder's levels; the paper's are (64, 128, 256). The decoder is twice as wide.
        residual: False leaves the residual out, so that both halves of the decoder see the slice: a plain U-Net.

    Raises:
        ValueError: if there are fewer than two levels.

    Reference:
        Behrendt et al., MIDL 2024; blocks after Kascenas et al., MIDL 2022.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 64), residual: bool = True) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"channels of the U-Net are {tuple(channels)}, expected two levels or more")
        self.residual = residual
        parts = 2 if residual else 1
        self.encoder = nn.ModuleList(
            _block(before, width) for before, width in zip([1, *channels[:-1]], channels, strict=True)
        )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for width, wider in zip(channels[-2::-1], channels[:0:-1], strict=True):
            self.up.append(nn.ConvTranspose2d(parts * wider, parts * width, 2, stride=2))
            self.decoder.append(_block(2 * parts * width, parts * width))
        self.output = nn.Conv2d(parts * channels[0], 1, 1)
        # anomalies are rare: begin at a probability of 2 % (Lin et al., ICCV 2017), not at a half of everything
        nn.init.constant_(self.output.bias, -4.0)

    def forward(self, image: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Logits of anomaly.

        Args:
            image: (B, 1, H, W); H and W divisible by 2 to the number of levels but one.
            reconstructions: (B, L, H, W).

        Returns:
            (B, L, H, W), one map per reconstruction.
        """
        levels = reconstructions.shape[1]
        features = self._encode(image)
        if self.residual:
            residual = (image - reconstructions).flatten(0, 1)[:, None]
            features = [
                torch.cat([seen.repeat_interleave(levels, dim=0), changed], dim=1)
                for seen, changed in zip(features, self._encode(residual), strict=True)
            ]
        x = features[-1]
        for up, block, skipped in zip(self.up, self.decoder, features[-2::-1], strict=True):
            x = block(torch.cat([up(x), skipped], dim=1))
        logits = self.output(x)
        return logits.reshape(reconstructions.shape) if self.residual else logits.expand(reconstructions.shape)

    def _encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for block in self.encoder:
            image = block(nn.functional.avg_pool2d(image, 2) if features else image)
            features.append(image)
        return features


class AnomalyNetwork(nn.Module):
    """Both stages: a slice and its noise -> pseudo-healthy slice, and logit of anomaly. Stage 1 is frozen.

    Args:
        reconstruction: stage 1, trained: :class:`ConditionedDiffusion` or :class:`DenoisingAutoencoder`. It stays in
            evaluation mode, so that its normalization keeps its statistics, and gets no gradient.
        segmentation: stage 2.
    """

    def __init__(self, reconstruction: nn.Module, segmentation: SharedEncoderUNet) -> None:
        super().__init__()
        self.reconstruction = reconstruction.requires_grad_(False)
        self.segmentation = segmentation
        self.train(self.training)

    def train(self, mode: bool = True) -> AnomalyNetwork:
        super().train(mode)
        self.reconstruction.eval()
        return self

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor | None = None) -> torch.Tensor:
        """Means over the noise levels.

        Args:
            noisy, timesteps: as of :class:`ConditionedDiffusion`.

        Returns:
            (B, 2, H, W): mean reconstruction, and the logit of the mean probability of anomaly.
        """
        with torch.no_grad():
            reconstructions = self.reconstruction(noisy, timesteps).to(noisy.dtype)
        logits = self.segmentation(noisy[:, :1], reconstructions).float()
        # log(p / (1 - p)) of p = mean sigmoid; of one level it is the logit itself. -softplus(-x) is logsigmoid(x), but
        # ONNX would have the latter as log(sigmoid(x)): -inf where the network is sure
        logit = (-softplus(-logits)).logsumexp(1, keepdim=True) - (-softplus(logits)).logsumexp(1, keepdim=True)
        return torch.cat([reconstructions.mean(1, keepdim=True), logit], dim=1)


class _StandardizedConv(nn.Conv2d):
    """Convolution whose every filter has mean 0 and variance 1 (Qiao et al., arXiv:1903.10520), scaled by fan-in."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-5).sqrt()
        padded = nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
        return conv2d(padded, weight, self.bias)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for width in (inputs, outputs):
        layers += [_StandardizedConv(width, outputs, 3), nn.SiLU(), nn.GroupNorm(max(outputs // 8, 1), outputs)]
    return nn.Sequential(*layers)
