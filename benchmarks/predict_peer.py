"""Prediction with nnU-Net's default 2-D network of ACDC, for ``benchmarks.predict``.

    python benchmarks/predict_peer.py FRAMES OUT THREADS --mirror

It only needs nnunetv2 and runs in an environment of its own. The weights are random, which changes no time.
"""

import sys
from importlib import import_module
from typing import Any

FEATURES = [32, 64, 128, 256, 512, 512, 512]
STRIDES = [[1, 1], *[[2, 2]] * 5, [2, 1]]


def make_plans() -> dict[str, Any]:
    """Make nnU-Net's 2-D plans of ACDC."""
    configuration: dict[str, Any] = {
        "data_identifier": "timed",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 20,
        "patch_size": [256, 224],
        "spacing": [1.5625, 1.5625],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": len(FEATURES),
                "features_per_stage": FEATURES,
                "conv_op": "torch.nn.modules.conv.Conv2d",
                "kernel_sizes": [[3, 3]] * len(FEATURES),
                "strides": STRIDES,
                "n_conv_per_stage": [2] * len(FEATURES),
                "n_conv_per_stage_decoder": [2] * (len(FEATURES) - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    for part, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        configuration[f"resampling_fn_{part}"] = "resample_data_or_seg_to_shape"
        options = {"is_seg": part == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{part}_kwargs"] = options
    return {
        "dataset_name": "Dataset027_ACDC",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"2d": configuration},
    }


def main(frames: str, out: str, threads: str, mirror: str) -> None:
    """Predict a folder of frames with nnU-Net's own predictor."""
    import torch

    predict = import_module("nnunetv2.inference.predict_from_raw_data")
    handling = import_module("nnunetv2.utilities.plans_handling.plans_handler")
    building = import_module("nnunetv2.utilities.get_network_from_plans")
    torch.set_num_threads(int(threads))
    plans = handling.PlansManager(make_plans())
    configuration = plans.get_configuration("2d")
    net = building.get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        4,
        allow_init=True,
        deep_supervision=False,
    )
    predictor = predict.nnUNetPredictor(
        use_mirroring=mirror == "--mirror",
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    labels = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    dataset = {"channel_names": {"0": "cineMRI"}, "labels": labels, "numTraining": 200, "file_ending": ".nii.gz"}
    predictor.manual_initialization(net, plans, configuration, [net.state_dict()], dataset, "nnUNetTrainer", (0, 1))
    predictor.predict_from_files(frames, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
