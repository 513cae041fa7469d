"""The methods that can be compared, and how each is trained on the cases of one fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError

from .trial import Trial

Options = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A way to masks.

    Args:
        name: what it is asked for by.
        title: on the page.
        bundle: whose configs it runs.
        target: name of the target.
        layers: configs between ``inference.json`` and the scoring.
        train: trains what the method needs and returns options of inference; None where nothing is to be trained.
        has_weights: whether the bundle ships weights for it.
        is_probability: whether its map is one, so that its entropy means something.
        is_baseline: whether it is what the others have to beat.
    """

    name: str
    title: str
    bundle: str
    target: str
    layers: tuple[str, ...] = ()
    train: Callable[[Trial], Options] | None = None
    has_weights: bool = True
    is_probability: bool = False
    is_baseline: bool = False


# Baur et al. 2019


def _autoencoder(trial: Trial) -> Options:
    models = trial.train("uad_autoencoder", ["train_autoencoder"], trial.healthy())
    return {"weights": models / "autoencoder.pt"}


def _unet_of_labels(trial: Trial) -> Options:
    return {"weights": trial.train("uad_autoencoder", ["train"], trial.labelled(), name="plain") / "model.pt"}


def _unet_of_pseudo_labels(trial: Trial) -> Options:
    teacher = _autoencoder(trial)
    layers = ["inference_residual"]
    threshold = trial.calibrate("uad_autoencoder", layers, teacher)
    patients = {"training": trial.patients()}
    masks = trial.predict("uad_autoencoder", [*layers, "pseudo_label"], patients, **teacher, **threshold)
    # the labels of the training part are only listed, for the checks of the splits
    options = {"use_labels": False, "pseudo_datalist_file": masks / "datalist.json"}
    models = trial.train("uad_autoencoder", ["train"], trial.labelled(), name="pseudo", **options)
    return {"weights": models / "model.pt"}


# Behrendt et al. 2024


def _diffusion(trial: Trial) -> Options:
    healthy = trial.healthy()
    stage1 = trial.train("diffusion_recon_unet", ["train_diffusion"], healthy)
    options = {"diffusion_weights": stage1 / "diffusion.pt", "healthy_datalist_file": trial.write_cases(healthy)}
    return {"weights": trial.train("diffusion_recon_unet", ["train"], trial.labelled(), **options) / "model.pt"}


# Roulet et al. 2019


def _ace(trial: Trial) -> Options:
    return {"handlers#0#path": trial.train("ace_multitask", ["train"], trial.by_dataset()) / "model.pt"}


# Yu et al. 2020


def _sae(trial: Trial) -> Options:
    return {"weights": trial.train("sae_segmentation", ["train"], trial.unlabelled()) / "model.pt"}


# Xu and Niethammer 2019


def _registration(trial: Trial) -> Path:
    return trial.train("deepatlas_joint", ["train", "train_registration"], trial.labelled(some=True))


def _propagation(trial: Trial) -> Options:
    source = trial.labelled()["training"][0]
    images = trial.images_of(source, "deepatlas_joint")
    files = {"moving_file": images[0], "moving_label_file": source["label"]}
    return {"weights": _registration(trial) / "registration.pt", **files}


def _segmentation_of_labels(trial: Trial) -> Options:
    configs, alone = ["train", "train_segmentation"], {"anatomy": False, "registration_weights": None}
    models = trial.train("deepatlas_joint", configs, trial.labelled(some=True), name="plain", **alone)
    return {"weights": models / "model.pt"}


def _deepatlas(trial: Trial) -> Options:
    registration, cases = _registration(trial) / "registration.pt", trial.labelled(some=True)
    options = {"registration_weights": registration}
    segmentation = trial.train("deepatlas_joint", ["train", "train_segmentation"], cases, name="taught", **options)
    options["segmentation_weights"] = segmentation / "model.pt"
    return {"weights": trial.train("deepatlas_joint", ["train"], cases, name="joint", **options) / "model.pt"}


METHODS = {
    method.name: method
    for method in (
        Method(
            "flair_threshold",
            "FLAIR threshold",
            "uad_autoencoder",
            "lesion",
            ("inference_threshold",),
            is_baseline=True,
        ),
        Method("uad_residual", "UAD residual", "uad_autoencoder", "lesion", ("inference_residual",), _autoencoder),
        Method(
            "uad_pseudo",
            "UAD U-Net, pseudo-labels",
            "uad_autoencoder",
            "lesion",
            (),
            _unet_of_pseudo_labels,
            has_weights=False,
            is_probability=True,
        ),
        Method(
            "unet",
            "U-Net, labels",
            "uad_autoencoder",
            "lesion",
            (),
            _unet_of_labels,
            is_probability=True,
            is_baseline=True,
        ),
        Method(
            "t1w_threshold",
            "T1w threshold",
            "diffusion_recon_unet",
            "lesion",
            ("inference_threshold",),
            is_baseline=True,
        ),
        Method(
            "diffusion_reconstruction",
            "cDDPM",
            "diffusion_recon_unet",
            "lesion",
            ("inference_reconstruction",),
            _diffusion,
        ),
        Method("diffusion", "cDDPM + U-Net", "diffusion_recon_unet", "lesion", (), _diffusion),
        Method("ace_lesion", "ACE", "ace_multitask", "lesion", (), _ace, is_probability=True),
        Method("ace_tissue", "ACE", "ace_multitask", "tissue", (), _ace),
        Method("sae", "SAE", "sae_segmentation", "tissue", (), _sae),
        Method("em", "mixture of Gaussians", "sae_segmentation", "tissue", ("inference_em",), is_baseline=True),
        Method("atlas", "atlas alone", "sae_segmentation", "tissue", ("inference_atlas",), is_baseline=True),
        Method("deepatlas", "DeepAtlas", "deepatlas_joint", "tissue", (), _deepatlas),
        Method(
            "propagation",
            "label propagation",
            "deepatlas_joint",
            "tissue",
            ("inference_propagation",),
            _propagation,
            is_baseline=True,
        ),
        Method(
            "unet_tissue",
            "U-Net, labels",
            "deepatlas_joint",
            "tissue",
            (),
            _segmentation_of_labels,
            has_weights=False,
            is_baseline=True,
        ),
    )
}


def choose(names: list[str] | None, target: str, shipped: bool) -> list[Method]:
    """Methods for a target, by name, or all of them.

    Raises:
        InputError: if there is no such method, or the bundle ships no weights for it and none are to be trained.
    """
    fitting = {name: method for name, method in METHODS.items() if method.target == target}
    if names is None:
        return [method for method in fitting.values() if method.has_weights or not shipped]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise InputError(f"methods has {unknown[0]}, expected some of {', '.join(METHODS)}")
    chosen = [fitting[name] for name in names if name in fitting]
    without = [method.name for method in chosen if shipped and not method.has_weights]
    if without:
        raise InputError(f"the bundles ship no weights for {', '.join(without)}, expected --weights train for these")
    return chosen
