"""What the tools know of ``diffusion_recon_unet``: any anomaly, from healthy scans and a few labels, or none."""

from pathlib import Path

from catalog import Calibration, Description, Inference, Method, Prediction, Row, Stage, Use

BOTH = Inference(least_volume="min_lesion_mm3")
UNET = Inference(("inference_unet",), least_volume="min_lesion_mm3")
RECONSTRUCTION = Inference(("inference_reconstruction",), least_volume="min_lesion_mm3")
LIGHT = Inference(("inference_light",), least_volume="min_lesion_mm3")
WITHOUT_RESIDUAL = Inference(("inference_without_residual",), least_volume="min_lesion_mm3")
FUSED = Inference(("inference_fused",), least_volume="min_lesion_mm3")
HEALTHY = Inference(("inference_threshold", "inference_healthy"), weights=(), least_volume="min_lesion_mm3")
FLAIR = Inference(("inference_flair",), least_volume="min_lesion_mm3")
FLAIR_THRESHOLD = Inference(
    ("inference_threshold", "inference_threshold_flair"), weights=(), least_volume="min_lesion_mm3"
)
T1W_THRESHOLD = Inference(("inference_threshold",), weights=(), least_volume="min_lesion_mm3")

DIFFUSION = Stage(
    ("train_diffusion",),
    writes="diffusion.pt",
    learns={"healthy": 1},
    validates={"healthy": 1},
    paper={"healthy": 358},
)
PAINTED = Stage(
    ("train",),
    name="painted",
    learns={"healthy": 1},
    validates={"healthy": 1},
    paper={"healthy": 358},
    datalists={"healthy_datalist_file": "healthy"},
    given={"diffusion_weights": DIFFUSION},
)
PATHOLOGY = Stage(
    ("train",),
    learns={"healthy": 1, "drawn": 1},
    validates={"healthy": 1, "drawn": 1},
    paper={"drawn": 90},
    datalists={"datalist_file": "drawn", "healthy_datalist_file": "healthy"},
    given={"diffusion_weights": DIFFUSION},
)

DESCRIPTION = Description(
    summary="""\
Any anomaly in T1w, from healthy scans and a few masks, or none. A diffusion model turns a scan into a pseudo-healthy
one; a U-Net looks at the scan and at what was changed. After Behrendt et al., MIDL 2024.""",
    inferences=(
        BOTH,
        UNET,
        RECONSTRUCTION,
        LIGHT,
        WITHOUT_RESIDUAL,
        FUSED,
        HEALTHY,
        FLAIR,
        T1W_THRESHOLD,
        FLAIR_THRESHOLD,
    ),
    uses=(
        Use("as shipped", "a score of anomaly from T1w", (Prediction(BOTH),)),
        Use(
            "train on healthy scans and painted anomalies",
            "a score of anomaly, without a label",
            (DIFFUSION, PAINTED, Calibration(BOTH, rate=0.01)),
        ),
        Use(
            "train on healthy scans and masks of one pathology",
            "a score of any anomaly",
            (DIFFUSION, PATHOLOGY, Calibration(BOTH)),
            values=(0, 1),
        ),
    ),
    methods=(
        Method("t1w_threshold", "T1w threshold", "lesion", T1W_THRESHOLD, is_baseline=True),
        Method("diffusion_reconstruction", "cDDPM", "lesion", RECONSTRUCTION, PATHOLOGY),
        Method("diffusion", "cDDPM + U-Net", "lesion", BOTH, PATHOLOGY),
    ),
    rows=(
        Row("sum of both", BOTH),
        Row("U-Net alone", UNET),
        Row("U-Net, and darker than healthy people", FUSED),
        Row("reconstruction alone", RECONSTRUCTION),
        Row("darker than healthy people", HEALTHY, is_baseline=True),
        Row("plain T1w threshold", T1W_THRESHOLD, is_baseline=True),
    ),
    needs=(frozenset({"T1w", "lesion"}),),
    exporter="trace",  # the attention of MONAI cannot be scripted
    small={
        "train_diffusion": {"slice_size": [32, 32]},
        "train": {
            "diffusion_weights": str(Path(__file__).with_name("models") / "model.pt"),
            "slice_size": [32, 32],
        },
    },
)
