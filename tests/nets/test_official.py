"""Released checkpoints: recognition, plans and safe reading."""

import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from uumamba import nets
from uumamba.nets import load_official
from uumamba.nets.official_weights import recognise, remove_duplicates
from uumamba.nets.safe_reading import read_weights_file

FACTS = sorted((Path(__file__).parent / "facts" / "released").glob("*.json"))
KINDS = ("UMambaBot", "UMambaEnc", "ResEncUNet", "LegacyUMambaEnc", "LegacyUMambaBot")
STRIDES = {2: [[1, 1], [2, 2], [2, 2]], 3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
KERNELS = {2: [[3, 3]] * 3, 3: [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
DUPLICATE = "decoder.encoder.stem.0.conv1.bias"
PATCH = {2: [8, 16], 3: [4, 8, 16]}


def small_net(name, spatial_dims):
    """Build a network with widths 4, 6, 10.

    In 2-D the last stage of UMambaEnc has 8 voxels, fewer than channels.
    """
    arguments = {"features": [4, 6, 10], "strides": STRIDES[spatial_dims], "kernel_sizes": KERNELS[spatial_dims]}
    if name == "UMambaEnc":
        arguments["patch_size"] = PATCH[spatial_dims]
    torch.manual_seed(1)
    return getattr(nets, name)(spatial_dims, 2, 3, **arguments).eval()


def as_released(net):
    """Return the state dict with the duplicate names of the released code."""
    names = OrderedDict()
    for key, value in net.state_dict().items():
        if "LegacyUMambaBot" in type(net).__name__:
            key = key.replace("mamba_layer.norm.", "ln.").replace("mamba_layer.mamba.", "mamba.")
        aliases = [key]
        if ".conv." in key or (".norm." in key and "mamba" not in key):
            aliases.append(key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1."))
        names.update(dict.fromkeys(aliases, value))
        if key.startswith("encoder."):
            names.update({f"decoder.{alias}": value for alias in aliases})
    return names


def plans_for(spatial_dims, **changes):
    stages = {
        "patch_size": PATCH[spatial_dims],
        "pool_op_kernel_sizes": STRIDES[spatial_dims],
        "conv_kernel_sizes": KERNELS[spatial_dims],
    }
    return {"configurations": {"2d" if spatial_dims == 2 else "3d_fullres": stages | changes}}


def trainer_checkpoint(net, *, weights=None, plans=None, configuration=None):
    """Return a checkpoint of nnU-Net's trainer, with NumPy numbers and a device."""
    return {
        "network_weights": as_released(net) if weights is None else weights,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]},
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.25)], "epochs": [np.int64(3)]},
        "_best_ema": np.float64(0.75),
        "current_epoch": 4,
        "init_args": {
            "plans": plans_for(net.spatial_dims) if plans is None else plans,
            "configuration": configuration or ("2d" if net.spatial_dims == 2 else "3d_fullres"),
            "device": torch.device("cuda"),
        },
    }


@pytest.fixture
def saved(tmp_path):
    def save(content, **options):
        path = tmp_path / "checkpoint_final.pth"
        torch.save(content, path, **options)
        return path

    return save


def image_for(net):
    return torch.randn(1, 2, *PATCH[net.spatial_dims], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_network_of_released_names_and_shapes_is_recognised(path):
    facts = json.loads(path.read_text(encoding="utf-8"))
    # An expanded number needs no memory for its shape.
    weights = remove_duplicates({key: torch.zeros(()).expand(shape) for key, shape in facts["shapes"].items()})
    network, found = recognise(weights)
    layout, variant, _ = path.stem.split("_")
    assert network == f"{'Legacy' if layout == 'legacy' else ''}UMamba{variant.title()}"
    strides = tuple(map(tuple, facts["strides"]))
    arguments = {"strides": strides} | found
    assert arguments["strides"] == strides
    if network == "UMambaEnc":
        arguments["patch_size"] = facts["patch_size"]
    with torch.device("meta"):
        net = getattr(nets, network)(**arguments)
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    assert shapes == {key: value.shape for key, value in weights.items()}
    assert sum(weight.numel() for weight in net.parameters()) == facts["parameters"]
    published = {"umamba_bot_3d": 41.94, "umamba_enc_3d": 43.06, "legacy_enc_3d": 58.8}  # millions, for ACDC
    if path.stem in published:
        assert facts["parameters"] / 1e6 == pytest.approx(published[path.stem], abs=0.05)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip file", "older format"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_of_the_trainer_gives_the_same_network(saved, kind, spatial_dims, is_zip):
    net = small_net(kind, spatial_dims)
    path = saved(trainer_checkpoint(net), _use_new_zipfile_serialization=is_zip)
    before = torch.get_rng_state()
    loaded = load_official(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(net)
    assert not loaded.training
    assert torch.equal(loaded(image_for(net)), net(image_for(net)))
    torch.testing.assert_close(loaded.train()(image_for(net)), net.train()(image_for(net)), rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
def test_state_dict_with_half_weights_and_wrapper_prefixes_is_read(saved, prefix):
    net = small_net("UMambaBot", 2)
    weights = {prefix + key: value.half() for key, value in as_released(net).items()}
    loaded = load_official(saved(weights), strides=STRIDES[2])
    assert torch.equal(loaded(image_for(net)), net.half().float()(image_for(net)))
    assert {(weight.dtype, weight.requires_grad) for weight in loaded.parameters()} == {(torch.float32, True)}


def test_weights_with_shared_memory_in_the_file_are_separate_in_the_network(saved):
    weights = remove_duplicates(as_released(small_net("UMambaBot", 2)))
    weights["encoder.stem.0.norm1.weight"] = weights["encoder.stem.0.norm2.weight"]
    loaded = load_official(saved(weights), strides=STRIDES[2])
    assert len({weight.data_ptr() for weight in loaded.parameters()}) == len(list(loaded.parameters()))


@pytest.mark.parametrize("kind", ["LegacyUMambaEnc", "LegacyUMambaBot"])
def test_legacy_layout_needs_only_its_weights_and_refuses_other_strides(saved, refused, kind):
    net = small_net(kind, 3)
    path = saved(as_released(net))
    assert load_official(path).topology == load_official(path, strides=STRIDES[3]).topology == net.topology
    with refused(f"{path}: strides", got=((1, 1, 1), (2, 2, 2), (1, 2, 2))):
        load_official(path, strides=(1, 2, (1, 2, 2)))


NEWER_STAGES = {"strides": STRIDES[2], "kernel_sizes": KERNELS[2], "features_per_stage": [4, 6, 10]}
PLANS = {
    "2.1": plans_for(2),
    "2.3": {"configurations": {"2d": {"patch_size": PATCH[2], "architecture": {"arch_kwargs": NEWER_STAGES}}}},
    "inherited": {"configurations": plans_for(2)["configurations"] | {"larger_batch": {"inherits_from": "2d"}}},
}


@pytest.mark.parametrize("plans", PLANS.values(), ids=PLANS)
def test_plans_are_read_from_an_argument_a_file_or_the_checkpoint(saved, tmp_path, plans):
    net = small_net("UMambaEnc", 2)
    bare, file = saved(as_released(net)), tmp_path / "plans.json"
    file.write_text(json.dumps(plans), encoding="utf-8")
    assert load_official(bare, plans).topology == load_official(bare, file).topology == net.topology
    name = list(plans["configurations"])[-1]
    assert load_official(saved(trainer_checkpoint(net, plans=plans, configuration=name))).topology == net.topology


def test_arguments_have_precedence_over_plans(saved):
    path = saved(trainer_checkpoint(small_net("UMambaEnc", 2), plans=plans_for(2, patch_size=[64, 64])))
    assert load_official(path, patch_size=PATCH[2]).fixed_patch == tuple(PATCH[2])


def test_configuration_is_selected_by_its_kernels_or_by_name(saved, refused):
    path = saved(as_released(small_net("UMambaBot", 3)))
    plans = {"configurations": plans_for(2)["configurations"] | plans_for(3)["configurations"]}
    assert load_official(path, plans).required_divisor == (2, 4, 4)
    plans["configurations"]["3d_lowres"] = plans_for(3, patch_size=[2, 4, 8])["configurations"]["3d_fullres"]
    for wrong in (None, "3d"):
        with refused(f"{path}: configuration", got=wrong):
            load_official(path, plans, configuration=wrong)
    assert load_official(path, plans, configuration="3d_lowres").required_divisor == (2, 4, 4)


@pytest.mark.parametrize("kind", ["UMambaBot", "UMambaEnc"])
def test_missing_plans_are_asked_for_and_a_path_in_the_checkpoint_is_not_opened(saved, tmp_path, refused, kind):
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(plans_for(2)), encoding="utf-8")
    path = saved(trainer_checkpoint(small_net(kind, 2), plans=str(file)))
    with refused(f"{path}: plans", got=None):
        load_official(path)


@pytest.mark.parametrize(
    ("plans", "key"),
    [
        (plans_for(2, conv_kernel_sizes=[[1, 3], [3, 3], [3, 3]]), "plans"),
        (plans_for(2, pool_op_kernel_sizes=[[1, 1], [2, 2]]), "strides"),
        (plans_for(2, patch_size=None), "patch_size"),
        (plans_for(2, inherits_from="3d"), "plans.configurations.2d.inherits_from"),
        ({"plans_per_stage": {}}, "plans"),
        ("nowhere.json", "plans"),
    ],
)
def test_plans_that_do_not_fit_are_refused(saved, refused, plans, key):
    path = saved(as_released(small_net("UMambaEnc", 2)))
    with refused(f"{path}: {key}"):
        load_official(path, plans)


def test_weights_of_another_patch_size_are_refused_with_both_shapes(saved, refused):
    path = saved(as_released(small_net("UMambaEnc", 2)))
    with refused(f"{path}: weights.encoder.mamba_layers.2.norm.weight", got=(8,)) as error:
        load_official(path, strides=STRIDES[2], patch_size=(8, 12))
    assert "(6,)" in error.value.expected
    with refused(f"{path}: patch_size", got=(8, 10)):
        load_official(path, strides=STRIDES[2], patch_size=(8, 10))


def test_nan_weights_of_a_diverged_training_are_loaded(saved):
    net = small_net("UMambaBot", 2)
    weights = {key: value.clone().fill_(float("nan")) for key, value in as_released(net).items()}
    assert load_official(saved(weights), strides=STRIDES[2])(image_for(net)).isnan().all()


@pytest.mark.parametrize(
    ("change", "key", "got"),
    [
        (lambda w: w.pop("mamba_layer.mamba.D"), "weights.mamba_layer.mamba.D", "none"),
        (lambda w: w.update(extra=torch.zeros(2)), "weights.extra", (2,)),
        (lambda w: w.pop("decoder.seg_layers.1.weight"), "weights.decoder.seg_layers.1.weight", "none"),
        (lambda w: w.update(extra=3), "weights.extra", "int"),
        (
            lambda w: w.update({DUPLICATE: w[DUPLICATE] + 1}),
            f"weights.{DUPLICATE}",
            "other values",
        ),
        (lambda w: [w.pop(key) for key in list(w) if "upsample" in key], "weights", ANY),
        (lambda w: w.clear(), "weights", "no weight"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(saved, refused, change, key, got):
    weights = as_released(small_net("UMambaBot", 2))
    change(weights)
    path = saved(weights)
    with refused(f"{path}: {key}", got=got):
        load_official(path, strides=STRIDES[2])


class Malicious:
    """Object that overwrites a file if it is unpickled."""

    def __init__(self, source, canary):
        self.paths = str(source), str(canary)

    def __reduce__(self):
        return shutil.copyfile, self.paths


@pytest.mark.parametrize("form", ["zip", "older", 0, 2, 5])
def test_a_malicious_file_is_refused_and_its_code_does_not_run(tmp_path, refused, form):
    path, poison, canary = (tmp_path / name for name in ("checkpoint_final.pth", "poison.txt", "canary.txt"))
    poison.write_text("dead", encoding="utf-8")
    canary.write_text("alive", encoding="utf-8")
    content = {"network_weights": OrderedDict(a=torch.zeros(1)), "init_args": Malicious(poison, canary)}
    if isinstance(form, str):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps({"init_args": content["init_args"]}, protocol=form))
    with refused(str(path)) as error:
        load_official(path)
    assert canary.read_text(encoding="utf-8") == "alive"
    assert "shutil.copyfile" in error.value.got or form in (0, 5)
    # Without the safe reader the file overwrites the canary.
    if isinstance(form, str):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert canary.read_text(encoding="utf-8") == "dead"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused(tmp_path, refused, content):
    path = tmp_path / "checkpoint_final.pth"
    with refused(str(path), got="no file"):
        load_official(path)
    path.write_bytes(content)
    with refused(str(path)):
        load_official(path)


def test_truncated_checkpoints_and_other_objects_are_refused(saved, refused):
    path = saved(trainer_checkpoint(small_net("UMambaBot", 2)))
    path.write_bytes(path.read_bytes()[:-1000])
    with refused(str(path)):
        load_official(path)
    with refused(str(path)) as error:
        load_official(saved({"network_weights": {}, "best": Path("a")}))
    assert "pathlib" in error.value.got


def test_numpy_numbers_become_python_numbers(saved):
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int8, np.uint32, np.bool_)
    numbers = read_weights_file(saved([kind(1) for kind in kinds] + [np.array(-2.5, dtype=">f8")[()]]))
    assert numbers == [1.0, 1.0, 1.0, 1, 1, 1, True, -2.5]
    assert {type(number) for number in numbers} == {float, int, bool}
