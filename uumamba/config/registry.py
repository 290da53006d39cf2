"""Import paths of a run's named parts, by kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Kind:
    """Parts that can take the same place in a run.

    Attributes:
        parts: import path ``module:constructor`` of each part by its name.
        supplied: arguments that the run supplies; they are no options.
        nested: kind of each option that is a part itself.
        section: import path of a constructor whose options every part has in addition.
        only: name of the part, in sections that never have a ``name``.
        default: name of the part in a section without a ``name``.
        order: first keys of a stored configuration.
    """

    parts: Mapping[str, str]
    supplied: frozenset[str] = frozenset()
    nested: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    section: str | None = None
    only: str | None = None
    default: str | None = None
    order: tuple[str, ...] = ()


STAGE_NETS = {
    "UMambaBot": "uumamba.nets:UMambaBot",
    "UMambaEnc": "uumamba.nets:UMambaEnc",
    "ResEncUNet": "uumamba.nets:ResEncUNet",
}
FROM_DATA = frozenset({"in_channels", "out_channels", "patch_size"})
STAGES = (
    "spatial_dims",
    "features",
    "strides",
    "kernel_sizes",
    "encoder_blocks",
    "decoder_blocks",
    "stem_blocks",
    "full_resolution_skip",
)
KINDS: dict[str, Kind] = {
    "net": Kind(
        STAGE_NETS
        | {
            "CoarseToFine": "uumamba.config.net:coarse_to_fine",
            "SegResNet": "uumamba.config.net:segresnet",
            "DynUNet": "uumamba.config.net:dynunet",
            "UNETR": "uumamba.config.net:unetr",
            "SwinUNETR": "uumamba.config.net:swin_unetr",
        },
        supplied=FROM_DATA,
        nested={"coarse": "net of a cascade", "fine": "net of a cascade"},
        order=STAGES,
    ),
    "net of a cascade": Kind(STAGE_NETS, supplied=FROM_DATA, order=STAGES),
    "loss": Kind(
        {
            "uncertainty_weighted": "uumamba.config.loss:uncertainty_weighted",
            "dice_cross_entropy": "uumamba.config.loss:dice_cross_entropy",
        },
        supplied=frozenset({"membership", "ignore_label"}),
    ),
    "optim": Kind(
        {
            "Plain": "uumamba.optim:Plain",
            "SAM": "uumamba.optim:SAM",
            "ASAM": "uumamba.optim:ASAM",
            "GSAM": "uumamba.optim:GSAM",
            "FriendlySAM": "uumamba.optim:FriendlySAM",
            "LookSAM": "uumamba.optim:LookSAM",
            "MSAM": "uumamba.optim:MSAM",
            "StaleSAM": "uumamba.optim:StaleSAM",
            "SAGM": "uumamba.optim:SAGM",
            "TRAM": "uumamba.optim:TRAM",
        },
        supplied=frozenset(
            {"params", "net", "scaler", "accumulation", "rule", "group_defaults", "noise_at", "form", "ignore_label"}
        ),
        nested={"base": "base", "ascent": "ascent", "trigger": "trigger"},
        section="uumamba.config.optim:PerturbationOptions",
        order=("base", "max_grad_norm", "ascent", "perturb", "perturbation"),
    ),
    "base": Kind(
        {"SGD": "uumamba.config.optim:sgd", "AdamW": "uumamba.config.optim:adamw"},
        supplied=frozenset({"params", "fused"}),
    ),
    "ascent": Kind({"output_bias_forgetting": "uumamba.optim:OutputBiasForgetting"}),
    "trigger": Kind({"AdaptiveTrigger": "uumamba.optim:AdaptiveTrigger"}, only="AdaptiveTrigger"),
    "objective": Kind(
        {"supervised": "uumamba.training:SupervisedObjective", "MESA": "uumamba.optim:MESA"},
        supplied=frozenset({"loss", "net", "outputs", "form", "ignore_label"}),
    ),
    "schedule": Kind(
        {
            "poly": "uumamba.training.schedule:poly",
            "cosine": "uumamba.training.schedule:cosine",
            "constant": "uumamba.training.schedule:constant",
            "budget": "uumamba.training.schedule:by_budget",
        },
        supplied=frozenset({"optimizer", "total_steps", "warmup_steps", "budget"}),
        section="uumamba.config.learning_rate:ScheduleOptions",
        default="poly",
    ),
    "domain_generalization": Kind(
        {"UDIM": "uumamba.domain_generalization:UDIM"},
        supplied=frozenset({"net", "loss", "warmup_steps", "head", "ignore_label", "seed"}),
        nested={"perturbation": "perturbation"},
        section="uumamba.config.domain_generalization:PenaltyOptions",
        order=("perturbation", "lambda1", "lambda2", "rho", "warmup_fraction"),
    ),
    "perturbation": Kind(
        {
            "style": "uumamba.domain_generalization:StylePerturbation",
            "input": "uumamba.domain_generalization:InputPerturbation",
        },
        order=("rms",),
    ),
    "quantization": Kind(
        {"quantize_": "uumamba.quantization:quantize_"},
        supplied=frozenset({"net"}),
        nested={"gaqat": "gaqat"},
        section="uumamba.config.quantization:QuantizationOptions",
        only="quantize_",
        order=("weight_bits", "act_bits", "first_last_bits", "per_channel", "overrides", "start_step"),
    ),
    "gaqat": Kind({"GAQAT": "uumamba.quantization:GAQAT"}, supplied=frozenset({"optimizer", "net"}), only="GAQAT"),
    "federated": Kind(
        {"DFedSAM": "uumamba.federated:DFedSAM"},
        supplied=frozenset({"objective", "optimizer", "lr_factor", "ascent", "seed"}),
        nested={"topology": "topology"},
        section="uumamba.config.federated:FederatedOptions",
        only="DFedSAM",
        order=("sites", "topology", "local_steps", "gossip_steps", "participation"),
    ),
    "topology": Kind(
        {
            "ring": "uumamba.federated:ring",
            "grid": "uumamba.federated:grid",
            "torus": "uumamba.federated:torus",
            "exponential": "uumamba.federated:exponential",
            "one_peer_exponential": "uumamba.federated:one_peer_exponential",
            "random_regular": "uumamba.federated:random_regular",
            "full": "uumamba.federated:full",
            "server": "uumamba.federated:Server",
            "isolated": "uumamba.federated:Isolated",
        },
        supplied=frozenset({"clients", "sizes"}),
    ),
    "augment": Kind(
        {"nnunet": "uumamba.data.augment:nnunet_transforms"},
        supplied=frozenset({"patch_size", "mirror_swaps", "channels"}),
        section="uumamba.config.augmentation:SideOptions",
        only="nnunet",
        order=(
            "rotation_probability",
            "rotation_deg",
            "scale_probability",
            "scale",
            "mirror_axes",
            "mirror_probability",
            "swap_sides",
        ),
    ),
    "dataset": Kind(
        {
            "acdc": "data_prep.acdc:ACDC",
            "phantom": "data_prep.acdc:PHANTOM",
            "imagecas": "data_prep.imagecas:SPLIT1",
            "imagecas_split2": "data_prep.imagecas:SPLIT2",
            "imagecas_split3": "data_prep.imagecas:SPLIT3",
            "imagecas_split4": "data_prep.imagecas:SPLIT4",
            "aorta": "data_prep.aorta:AORTA",
            "mnms": "data_prep.mnms:MNMS",
            "folder": "data_prep.folder.folder_reader:FOLDER",
        },
        supplied=frozenset({"raw", "frames", "cut", "advance"}),
    ),
    "ct_statistics": Kind({"CtStatistics": "uumamba.data.recipe:CtStatistics"}, only="CtStatistics"),
    "tracker": Kind(
        {
            "tensorboard": "uumamba.training.track_tensorboard:TensorBoardTracker",
            "mlflow": "uumamba.training.track_mlflow:MLflowTracker",
        },
        supplied=frozenset({"folder", "database", "experiment", "run", "parameters"}),
    ),
}
