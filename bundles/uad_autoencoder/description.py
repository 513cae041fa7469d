"""What the tools know of ``uad_autoencoder``: lesions from a healthy brain's point of view."""

from catalog import Calibration, Description, Inference, Method, Prediction, Row, Stage, Use

UNET = Inference(least_volume="min_lesion_mm3", is_probability=True)
MIRROR = Inference(("inference_mirror",), least_volume="min_lesion_mm3", is_probability=True)
RESIDUAL = Inference(("inference_residual",), least_volume="min_lesion_mm3")
FLAIR_THRESHOLD = Inference(("inference_threshold",), weights=(), least_volume="min_lesion_mm3")

AUTOENCODER = Stage(
    ("train_autoencoder",),
    writes="autoencoder.pt",
    learns={"healthy": 1},
    validates={"healthy": 1},
    paper={"healthy": 68},
)
PSEUDO_LABELS = Prediction(
    RESIDUAL,
    by=AUTOENCODER,
    layers=("pseudo_label",),
    of="patients",
    section="training",
    output_dir="",
    writes="runs/pseudo_labels/datalist.json",
)
UNET_OF_PSEUDO_LABELS = Stage(
    ("train",),
    name="pseudo",
    learns={"patients": 1},
    validates={"labeled": 1},
    paper={"patients": 19},
    options={"use_labels": False},
    given={"pseudo_datalist_file": PSEUDO_LABELS},
)
UNET_OF_LABELS = Stage(("train",), name="plain", learns={"labeled": 1}, validates={"labeled": 1}, paper={"labeled": 15})

DESCRIPTION = Description(
    summary="""\
Lesions in FLAIR. An auto-encoder knows healthy slices; what is brighter than its reconstruction becomes a
pseudo-label; pseudo-labels and drawn masks train a U-Net. After Baur et al., MIDL 2019.""",
    inferences=(UNET, MIRROR, RESIDUAL, FLAIR_THRESHOLD),
    uses=(
        Use("as shipped", "lesions that are bright on FLAIR", (Prediction(UNET),)),
        Use(
            "train on healthy FLAIR and pseudo-labels of patients",
            "lesions that are bright on FLAIR",
            (
                AUTOENCODER,
                Calibration(RESIDUAL, rate=0.01),
                PSEUDO_LABELS,
                UNET_OF_PSEUDO_LABELS,
                Calibration(UNET),
            ),
            values=(0, 1),
        ),
        Use(
            "train the U-Net on drawn masks",
            "lesions, as the masks show them",
            (UNET_OF_LABELS, Calibration(UNET)),
            values=(0, 1),
        ),
    ),
    methods=(
        Method("flair_threshold", "FLAIR threshold", "lesion", FLAIR_THRESHOLD, is_baseline=True),
        Method("uad_residual", "UAD residual", "lesion", RESIDUAL, AUTOENCODER),
        Method("uad_pseudo", "UAD U-Net, pseudo-labels", "lesion", UNET, UNET_OF_PSEUDO_LABELS, is_shipped=False),
        Method("unet", "U-Net, labels", "lesion", UNET, UNET_OF_LABELS, is_baseline=True),
    ),
    rows=(
        Row("U-Net at two sizes, with brightness", UNET),
        Row("U-Net at one size, with its mirror image", MIRROR),
        Row("residual of the auto-encoder", RESIDUAL),
        Row("plain FLAIR threshold", FLAIR_THRESHOLD, is_baseline=True),
    ),
    needs=(frozenset({"FLAIR", "lesion"}),),
    suspects_in=("FLAIR",),
    trains_in_label=True,
    single_pass={"zooms": [1.0]},
    small={
        "train_autoencoder": {"slice_size": [48, 48], "network_def#channels": [4, 8], "network_def#latent_channels": 4},
        "train": {"patch_size": [32, 32], "network_def#features": [4, 4, 8, 8, 8, 4]},
    },
)
