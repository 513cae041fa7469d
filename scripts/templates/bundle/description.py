"""What the tools know of ``the_bundle``: tissues from T1w, learned from label maps."""

from catalog import Description, Inference, Method, Prediction, Row, Stage, Use

NETWORK = Inference()

TRAINING = Stage(("train",), learns={"labelled": 1}, validates={"labelled": 1})

DESCRIPTION = Description(
    summary="A 3-D U-Net learns label maps of tissues. Say here what the method is for, in a paragraph, and the paper.",
    inferences=(NETWORK,),
    uses=(
        Use("as shipped", "tissues from T1w", (Prediction(NETWORK),)),
        Use("train on label maps", "the classes of your label maps", (TRAINING,), values=(0, 1, 2, 3)),
    ),
    methods=(Method("the_bundle", "the_bundle", "tissue", NETWORK, TRAINING),),
    rows=(Row("the_bundle", NETWORK),),
    needs=(frozenset({"T1w", "tissues"}),),
    small={"train": {"network_def#channels": [4, 4, 8, 8], "patch_size": [24, 24, 24]}},
)
