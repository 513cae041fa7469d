"""Every option of the bundles: one name for a thing in all of them, its type, and what it is."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import types as t


class Option(NamedTuple):
    """Type of an option, and one line on it."""

    kind: Any
    meaning: str


VOCABULARY: dict[str, Option] = {
    # what goes in and out
    "bundle_root": Option(t.ExistingFolder, "folder of the bundle"),
    "dataset_dir": Option(t.ExistingFolder | None, "folder of scans, flat or BIDS-like"),
    "datalist_file": Option(t.File | None, "JSON of cases, in place of a folder"),
    "section": Option(t.Text | None, "part of the datalist; null for all"),
    "sequences": Option(t.Names, "sequences of a case, in the order of the network's channels"),
    "optional_sequences": Option(t.NamesOrNone, "sequences that a case may lack"),
    "healthy": Option(t.Flag | None, "take the cases that are healthy, or those that are not; null for all"),
    "dataset_name": Option(t.Text | None, "data set whose cases are taken; null for all"),
    "healthy_datalist_file": Option(t.File | None, "JSON of healthy cases to paint anomalies in"),
    "pseudo_datalist_file": Option(t.File | None, "JSON of pseudo-labels, as pseudo_label.json writes it"),
    "moving_file": Option(t.File | None, "scan that is warped; null for all of the datalist, or the template"),
    "moving_label_file": Option(t.File | None, "its label map"),
    "fixed_file": Option(t.File | None, "scan that stays; null for all of the datalist"),
    "fixed_label_file": Option(t.File | None, "its label map"),
    "atlas_files": Option(t.Files | None, "NIfTI files of the atlas, a class each or 4-D; null for ICBM 152"),
    "statistics_file": Option(t.File, "JSON of the training's intensities"),
    "output_dir": Option(t.Folder, "folder of the results"),
    "ckpt_dir": Option(t.Folder, "folder that trained weights are written to"),
    "weights_name": Option(t.Text, "file name of the trained weights in ckpt_dir"),
    "weights": Option(t.File | None, "weights of the network; null only where a layer needs none"),
    "initial_weights": Option(t.File | None, "weights to start the training from; null for random ones"),
    "start_weights": Option(t.File | None, "weights of a registration network that goes first; null for none"),
    "diffusion_weights": Option(t.File, "weights of stage 1"),
    "registration_weights": Option(t.File | None, "weights of the registration network to start from"),
    "segmentation_weights": Option(t.File | None, "weights of the segmentation network to start from"),
    "tissue_weights": Option(t.File, "weights of the tissue network"),
    "lesion_weights": Option(t.File, "weights of the lesion network"),
    # how it runs
    "device": Option(t.Device, "where the network runs"),
    "amp": Option(t.Flag, "mixed precision, in bfloat16"),
    "keep_going": Option(t.Flag, "go on with the next case if one fails"),
    "num_workers": Option(t.Whole, "processes that read scans; 0 for none but the main one"),
    "cache_rate": Option(t.Share, "share of the cases that is kept in memory"),
    "seed": Option(t.Seed, "seed of all that is random"),
    "resume": Option(t.Flag, "go on with a training that was stopped; false begins anew"),
    "max_minutes": Option(t.Minutes | None, "end the training after the last epoch that fits; null for no limit"),
    "pictures": Option(t.Flag, "write a picture of every pair"),
    "save_entropy": Option(t.Flag, "write a map of the entropy, in nats"),
    "save_reconstruction": Option(t.Flag, "write the pseudo-healthy image"),
    # the scan on its way to the network and back
    "spacing": Option(t.Spacing, "voxels that the network sees, mm"),
    "shape": Option(t.Grid, "voxels of the grid in template space"),
    "pad_multiple": Option(t.Multiple, "the network's grid is a multiple of so many voxels"),
    "slices": Option(t.OddCount, "slices that the network sees at once, the middle one is segmented"),
    "slice_size": Option(t.Grid, "pixels of a slice in the training"),
    "slice_step": Option(t.Count, "every so many slices of a volume are taken"),
    "patch_size": Option(t.Grid, "voxels of a training patch"),
    "window_size": Option(t.Grid, "voxels of a window of the inference"),
    "window_overlap": Option(t.ShareBelowOne, "share of a window that overlaps the next one"),
    "mirror": Option(t.Flag, "mean of the scan and its mirror image"),
    "align": Option(t.Flag, "align scan and template or atlas by an affine registration"),
    "atlas_label_sigma_mm": Option(
        t.Millimeters | None, "sd that makes an atlas of a label map, mm; null for probabilities"
    ),
    "atlas_blur_mm": Option(t.Millimeters, "sd of the Gaussian that smooths the atlas, mm"),
    "prior_floor": Option(t.ShareBelowOne, "smallest probability of a class in the brain"),
    "classes": Option(t.Count, "classes of the network, background included"),
    "lesion_class": Option(t.Whole, "label of lesions"),
    "background_in_brain": Option(t.Flag, "background may win inside the brain"),
    # from the map to the mask
    "two_views": Option(t.Flag, "tissues from both sequences, lesions the mean of both and of FLAIR alone"),
    "zooms": Option(t.Positives, "sizes at which the network sees the scan; the mean is taken"),
    "brightness": Option(t.NotNegative | None, "weight of how bright a place is, in the probability; 0 for none"),
    "threshold": Option(t.Positive, "a voxel is lesion where the map reaches it; in the unit of the map"),
    "threshold_source": Option(t.Text, "how the threshold was found, for the report"),
    "min_lesion_mm3": Option(t.CubicMillimeters, "smaller components are removed, mm3"),
    "median_mm": Option(t.Millimeters, "edge of the median filter of the map, mm"),
    "erosion_mm": Option(t.Millimeters, "rim of the brain that is left out, mm"),
    "bright_quantile": Option(t.ShareBelowOne, "the map is kept where the scan is above this quantile of its brain"),
    "beta": Option(t.NotNegative, "weight of a term: of the reconstruction's score, or of the neighbors' energy"),
    "residual": Option(t.Flag, "the U-Net sees the residual beside the image"),
    "noise_levels": Option(t.Levels, "steps of the diffusion at which it reconstructs; the mean is taken"),
    "iterations": Option(t.Count | t.Counts, "iterations of the fit, or at most so many on each level, coarsest first"),
    "radius": Option(t.Count, "radius of the windows of local correlation, voxels"),
    "integration_steps": Option(t.Whole, "squarings of the velocity field; 0 for plain displacements"),
    "normalize": Option(t.Flag, "normalize the activations of the registration network"),
    "passes": Option(t.Count, "times the registration network is applied"),
    # training
    "max_epochs": Option(t.Count, "epochs of the training"),
    "val_interval": Option(t.Count, "epochs from one validation to the next"),
    "batch_size": Option(t.Count, "patches, slices or volumes of a step"),
    "patches_per_volume": Option(t.Count, "patches of a volume at each visit"),
    "slices_per_volume": Option(t.Count, "slices of a volume at each visit"),
    "volumes_per_epoch": Option(t.Count | None, "volumes of an epoch; null for each once"),
    "learning_rate": Option(t.Positive, "largest learning rate"),
    "weight_decay": Option(t.NotNegative, "weight decay of the optimizer"),
    "lesion_patches": Option(t.NotNegative, "patches around lesions, in proportion to brain_patches"),
    "brain_patches": Option(t.NotNegative, "patches from anywhere in the brain"),
    "background_patches": Option(t.ShareBelowOne, "share of patches around what is no lesion"),
    "channel_dropout": Option(t.Share | t.Shares, "probability that a sequence is left out, of all alike or of each"),
    "channel_changes": Option(t.Share, "probability of gamma, blur and noise of each sequence on its own"),
    "zoom": Option(t.PositivePair, "smallest and largest size of a training patch"),
    "gamma": Option(t.PositivePair, "smallest and largest exponent of the intensities of a training patch"),
    "graded_labels": Option(t.Flag, "labels say how bright a lesion is"),
    "pseudo_weight": Option(t.Positive, "weight of a case with a pseudo-label; a drawn one has 1"),
    "soft_range": Option(t.RisingPair | None, "scores that become the soft labels 0 and 1; null for hard labels"),
    "use_labels": Option(t.Flag, "learn from drawn labels too"),
    "objective": Option(t.Text, "loss of the training"),
    "gdl_first_epoch": Option(t.Count, "epoch from which the gradient difference loss counts"),
    "gdl_weight": Option(t.NotNegative, "its weight"),
    "anomaly_probability": Option(t.Share, "probability that a slice with an anomaly is drawn"),
    "painting_probability": Option(t.Share, "probability that a healthy slice gets a painted anomaly"),
    "dice_weight": Option(t.NotNegative, "weight of the Dice loss"),
    "training_levels": Option(t.RisingPair, "steps of the diffusion that are drawn from, the upper one not"),
    "temperature": Option(t.Positive, "temperature of the Gumbel softmax"),
    "one_sided": Option(t.Flag, "gradient of the neighbors' energy as in the authors' code"),
    "class_variance": Option(t.Flag, "a variance of the reconstruction for every class"),
    "warmup": Option(t.Whole, "training steps without reconstruction"),
    "neighbors": Option(t.Matrix | None, "logarithms of how often two classes are neighbors, a row for each"),
    "neighbors_source": Option(t.Text, "where the table is from"),
    "registration_steps": Option(t.Whole, "registration steps of an epoch"),
    "segmentation_steps": Option(t.Whole, "segmentation steps of an epoch"),
    "registration_rate": Option(t.Positive, "learning rate of the registration network"),
    "segmentation_rate": Option(t.Positive, "learning rate of the segmentation network"),
    "labelled_cases": Option(t.Whole | None, "so many cases keep their label; null for all"),
    "teacher": Option(t.Flag, "the segmentation network helps where a label is missing"),
    "anatomy": Option(t.Flag, "labels take part in the registration"),
    "smoothness_weight": Option(t.NotNegative, "weight of the bending energy"),
    "anatomy_weight": Option(t.NotNegative, "weight of the overlap of labels"),
    "supervised_weight": Option(t.NotNegative, "weight of the labels in the segmentation's loss"),
    "correlation_window": Option(t.OddCount, "edge of the windows of local correlation, voxels"),
    "flip": Option(t.Share, "probability that a pair is mirrored left to right"),
}

# entries that only report or MONAI look at, so that nothing in a config may refer to them
UNUSED = {"threshold_source", "neighbors_source", "is_not_rank0", "bundle_root"}
