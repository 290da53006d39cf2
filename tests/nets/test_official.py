"""Released checkpoints become our networks, whole and from plain data alone; a hostile file runs nothing."""

import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from uumamba import nets
from uumamba.nets import load_official
from uumamba.nets.official_weights import recognise, without_duplicates
from uumamba.runtime.errors import UsageError

FACTS = sorted((Path(__file__).parent / "facts" / "released").glob("*.json"))
KINDS = ("UMambaBot", "UMambaEnc", "ResEncUNet", "LegacyUMambaEnc", "LegacyUMambaBot")
STRIDES = {2: [[1, 1], [2, 2], [2, 2]], 3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
KERNELS = {2: [[3, 3]] * 3, 3: [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
PATCH = {2: [8, 16], 3: [4, 8, 16]}


def small_net(name, spatial_dims):
    """Widths 4, 6, 10: with the patch above, the last stage of UMambaEnc has 8 voxels in 2-D, fewer than channels."""
    arguments = {"features": [4, 6, 10], "strides": STRIDES[spatial_dims], "kernel_sizes": KERNELS[spatial_dims]}
    if name == "UMambaEnc":
        arguments["patch_size"] = PATCH[spatial_dims]
    torch.manual_seed(1)
    return getattr(nets, name)(spatial_dims, 2, 3, **arguments).eval()


def as_released(net):
    """The state dict with the second names that the released code gives: the decoder's encoder, a block's list."""
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
    """What nnU-Net's trainer writes, NumPy's numbers and a device included."""
    return {
        "network_weights": as_released(net) if weights is None else weights,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(0.25)], "epochs": [np.int64(3)]},
        "_best_ema": np.float64(0.75),
        "current_epoch": 4,
        "init_args": {
            "plans": plans_for(net.spatial_dims) if plans is None else plans,
            "configuration": configuration or ("2d" if net.spatial_dims == 2 else "3d_fullres"),
            "fold": "all",
            "dataset_json": {"labels": {"background": 0, "RV": 1, "MYO": 2}},
            "unpack_dataset": True,
            "device": torch.device("cuda"),
        },
        "trainer_name": "nnUNetTrainerUMambaEnc",
        "inference_allowed_mirroring_axes": (0, 1),
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
def test_released_names_and_shapes_are_recognised_and_rebuilt_one_to_one(path):
    facts = json.loads(path.read_text(encoding="utf-8"))
    weights = without_duplicates({key: torch.zeros(()).expand(shape) for key, shape in facts["shapes"].items()})
    found = recognise(weights)
    assert (
        found.network
        == {
            "umamba_bot": "UMambaBot",
            "umamba_enc": "UMambaEnc",
            "legacy_bot": "LegacyUMambaBot",
            "legacy_enc": "LegacyUMambaEnc",
        }[path.stem.rpartition("_")[0]]
    )
    arguments = {"strides": tuple(map(tuple, facts["strides"]))} | found.arguments
    assert arguments["strides"] == tuple(map(tuple, facts["strides"]))
    if found.network == "UMambaEnc":
        arguments["patch_size"] = facts["patch_size"]
    with torch.device("meta"):
        net = getattr(nets, found.network)(**arguments)
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    assert shapes == {key: value.shape for key, value in weights.items()}
    assert sum(weight.numel() for weight in net.parameters()) == facts["parameters"]


@pytest.mark.parametrize(
    ("name", "millions"), [("umamba_bot_3d", 41.94), ("umamba_enc_3d", 43.06), ("legacy_enc_3d", 58.8)]
)
def test_parameters_of_the_3d_networks_for_acdc_are_those_published(name, millions):
    facts = json.loads(next(path for path in FACTS if path.stem == name).read_text(encoding="utf-8"))
    weights = without_duplicates({key: torch.zeros(()).expand(shape) for key, shape in facts["shapes"].items()})
    assert sum(weight.numel() for weight in weights.values()) / 1e6 == pytest.approx(
        millions, abs=0.05 if millions == 58.8 else 0.005
    )


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trainers_checkpoint_gives_the_same_network(saved, kind, spatial_dims):
    net = small_net(kind, spatial_dims)
    loaded = load_official(saved(trainer_checkpoint(net)))
    assert type(loaded) is type(net)
    assert not loaded.training
    assert torch.equal(loaded(image_for(net)), net(image_for(net)))
    for one, other in zip(loaded.train()(image_for(net)), net.train()(image_for(net)), strict=True):
        assert torch.equal(one, other)


def test_a_bare_state_dict_and_its_wrappers_prefixes_are_read(saved):
    net = small_net("UMambaBot", 2)
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod."):
        weights = {prefix + key: value for key, value in as_released(net).items()}
        loaded = load_official(saved(weights), strides=STRIDES[2])
        assert torch.equal(loaded(image_for(net)), net(image_for(net)))


def test_torchs_older_file_format_is_read(saved):
    net = small_net("LegacyUMambaEnc", 2)
    loaded = load_official(saved(trainer_checkpoint(net), _use_new_zipfile_serialization=False))
    assert torch.equal(loaded(image_for(net)), net(image_for(net)))


def test_weights_become_float32_and_random_state_is_left_alone(saved):
    net = small_net("UMambaBot", 2)
    path = saved(trainer_checkpoint(net, weights={key: value.half() for key, value in as_released(net).items()}))
    before = torch.get_rng_state()
    loaded = load_official(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert all(weight.requires_grad for weight in loaded.parameters())


def test_weights_that_share_memory_in_the_file_are_apart_in_the_network(saved):
    weights = without_duplicates(as_released(small_net("UMambaBot", 2)))
    weights["encoder.stem.0.norm1.weight"] = weights["encoder.stem.0.norm2.weight"]
    loaded = load_official(saved(weights), strides=STRIDES[2])
    assert len({weight.data_ptr() for weight in loaded.parameters()}) == len(list(loaded.parameters()))


def test_the_older_layout_needs_nothing_beside_its_weights(saved):
    for name in ("LegacyUMambaEnc", "LegacyUMambaBot"):
        net = small_net(name, 3)
        assert load_official(saved(as_released(net))).topology == net.topology


def test_strides_that_the_older_layouts_weights_contradict_are_refused(saved):
    path = saved(as_released(small_net("LegacyUMambaEnc", 2)))
    assert load_official(path, strides=(1, 2, 2)).required_divisor == (4, 4)
    with pytest.raises(
        UsageError, match=r"the weights have strides .* and strides= gives \(\(1, 1\), \(2, 2\), \(1, 2\)"
    ):
        load_official(path, strides=(1, 2, (1, 2)))


# Plans


def newer(spatial_dims):
    kwargs = {"strides": STRIDES[spatial_dims], "kernel_sizes": KERNELS[spatial_dims], "features_per_stage": [4, 6, 10]}
    architecture = {"network_class_name": "a.b.PlainConvUNet", "arch_kwargs": kwargs}
    return {"configurations": {"2d": {"patch_size": PATCH[spatial_dims], "architecture": architecture}}}


def inheriting(spatial_dims):
    parent = plans_for(spatial_dims)["configurations"]
    (name,) = parent
    return {"configurations": parent | {"larger_batch": {"batch_size": 4, "inherits_from": name}}}


@pytest.mark.parametrize("plans", [plans_for(2), newer(2), inheriting(2)], ids=["2.1", "2.3", "inherited"])
def test_plans_come_from_an_argument_a_file_or_the_checkpoint(saved, tmp_path, plans):
    net = small_net("UMambaEnc", 2)
    bare, file = saved(as_released(net)), tmp_path / "plans.json"
    file.write_text(json.dumps(plans), encoding="utf-8")
    assert load_official(bare, plans).topology == net.topology
    assert load_official(bare, file).topology == net.topology
    name = list(plans["configurations"])[-1]
    assert load_official(saved(trainer_checkpoint(net, plans=plans, configuration=name))).topology == net.topology


def test_arguments_stand_above_plans(saved):
    net = small_net("UMambaEnc", 2)
    path = saved(trainer_checkpoint(net, plans=plans_for(2, patch_size=[64, 64])))
    assert load_official(path, patch_size=PATCH[2]).fixed_patch == tuple(PATCH[2])


def test_the_configuration_with_the_weights_kernels_is_taken(saved):
    path = saved(as_released(small_net("UMambaBot", 3)))
    both = {"configurations": plans_for(2)["configurations"] | plans_for(3)["configurations"]}
    assert load_official(path, both).required_divisor == (2, 4, 4)


def test_several_fitting_configurations_need_a_name(saved):
    path = saved(as_released(small_net("UMambaBot", 3)))
    plans = plans_for(3)
    plans["configurations"]["3d_lowres"] = plans_for(3, patch_size=[2, 4, 8])["configurations"]["3d_fullres"]
    with pytest.raises(UsageError, match=r"fit these weights: 3d_fullres, 3d_lowres; say with configuration="):
        load_official(path, plans)
    assert load_official(path, plans, configuration="3d_lowres").required_divisor == (2, 4, 4)
    with pytest.raises(UsageError, match=r"no configuration '3d'; found 3d_fullres, 3d_lowres"):
        load_official(path, plans, configuration="3d")


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            "UMambaBot",
            r"UMambaBot do not tell its strides, and the checkpoint holds no plans; give plans= .* or strides=\.",
        ),
        ("UMambaEnc", r"UMambaEnc do not tell its strides and patch size, .* or strides= and patch_size=\."),
    ],
)
def test_missing_plans_are_asked_for_in_one_sentence(saved, kind, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        load_official(saved(as_released(small_net(kind, 2))))
    assert "checkpoint_final.pth" in str(caught.value)
    assert str(caught.value).count(". ") == 0


def test_a_path_that_the_checkpoint_gives_for_its_plans_is_not_opened(saved, tmp_path):
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(plans_for(2)), encoding="utf-8")
    checkpoint = trainer_checkpoint(small_net("UMambaBot", 2), plans=str(file))
    with pytest.raises(UsageError, match="the checkpoint holds no plans"):
        load_official(saved(checkpoint))


@pytest.mark.parametrize(
    ("plans", "sentence"),
    [
        (plans_for(2, conv_kernel_sizes=[[1, 3], [3, 3], [3, 3]]), r"kernels .* is not what the plans' 2d have"),
        (plans_for(2, pool_op_kernel_sizes=[[1, 1], [2, 2]]), "strides should have 3 entries"),
        (plans_for(2, pool_op_kernel_sizes=[1, 2, 2]), "'2d' of the plans should give strides and kernels as lists"),
        (plans_for(2, patch_size=None), "the plans name no patch size"),
        (plans_for(2, inherits_from="3d"), "'2d' of the plans inherits from '3d', which leads nowhere"),
        (plans_for(2, inherits_from="2d"), "'2d' of the plans inherits from '2d', which leads nowhere"),
        ({"plans_per_stage": {}}, "the plans have no configurations"),
        ("nowhere.json", "nowhere.json cannot be read as JSON"),
    ],
)
def test_plans_that_do_not_fit_are_refused(saved, plans, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_official(saved(as_released(small_net("UMambaEnc", 2))), plans)


def test_a_channel_token_stage_that_does_not_fit_the_patch_size_is_named(saved):
    path = saved(as_released(small_net("UMambaEnc", 2)))
    sentence = (
        r"stage 2 does not fit the patch size \(8, 12\): its Mamba layer is 8 wide, but the width is the smaller of "
        r"its channels, 10, and its feature map's voxels, there 2x3 = 6; give"
    )
    with pytest.raises(UsageError, match=sentence):
        load_official(path, strides=STRIDES[2], patch_size=(8, 12))
    with pytest.raises(UsageError, match="patch_size has 10 voxels on spatial axis 1"):
        load_official(path, strides=STRIDES[2], patch_size=(8, 10))


# Weights that are not as released


def test_second_names_that_disagree_are_refused(saved):
    weights = as_released(small_net("UMambaBot", 2))
    weights["decoder.encoder.stem.0.conv1.bias"] = weights["encoder.stem.0.conv1.bias"] + 1
    sentence = r"encoder\.stem\.0\.conv1\.bias and decoder\.encoder\.stem\.0\.conv1\.bias are two names .* but differ"
    with pytest.raises(UsageError, match=sentence):
        load_official(saved(weights), strides=STRIDES[2])


def test_weights_of_a_run_that_diverged_are_still_loaded(saved):
    net = small_net("UMambaBot", 2)
    weights = {key: value.clone().fill_(float("nan")) for key, value in as_released(net).items()}
    assert load_official(saved(weights), strides=STRIDES[2])(image_for(net)).isnan().all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop("mamba_layer.mamba.D"), r"1 of \d+ weights do not fit .* mamba_layer.mamba.D is missing"),
        (lambda w: w.update(extra=torch.zeros(2)), r"extra is \(2,\), not known"),
        (lambda w: w.pop("decoder.seg_layers.1.weight"), r"seg_layers.1.weight should be a convolution's .* missing"),
        (lambda w: w.update(extra=3), "should hold plain tensors; found int at 'extra'"),
        (lambda w: [w.pop(key) for key in list(w) if "upsample" in key], "weights of no U-Mamba: neither"),
        (lambda w: w.clear(), "should hold a state dict of named tensors"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(saved, change, sentence):
    weights = as_released(small_net("UMambaBot", 2))
    change(weights)
    with pytest.raises(UsageError, match=sentence):
        load_official(saved(weights), strides=STRIDES[2])


# Files that are not plain data


class Hostile:
    """Opened by an ordinary unpickler, it copies a file onto the canary."""

    def __init__(self, source, canary):
        self.paths = str(source), str(canary)

    def __reduce__(self):
        return shutil.copyfile, self.paths


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary.txt"
    path.write_text("alive", encoding="utf-8")
    return path


def write_hostile(path, form, hostile):
    content = {"network_weights": OrderedDict(a=torch.zeros(1)), "init_args": hostile}
    if form == "zip":
        torch.save(content, path)
    elif form == "older":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"init_args": hostile}, protocol=form))


@pytest.mark.parametrize("form", ["zip", "older", 0, 1, 2, 3, 4, 5])
def test_a_malicious_pickle_leaves_the_canary_alone_and_is_refused_by_name(tmp_path, canary, form):
    path, poison = tmp_path / "checkpoint_final.pth", tmp_path / "poison.txt"
    poison.write_text("dead", encoding="utf-8")
    write_hostile(path, form, Hostile(poison, canary))
    with pytest.raises(UsageError, match=r"asks for shutil\.copyfile when it is opened, .*; nothing in it was run"):
        load_official(path)
    assert canary.read_text(encoding="utf-8") == "alive"


@pytest.mark.parametrize("form", ["zip", "older", 0, 2, 5])
def test_the_same_file_would_have_killed_the_canary(tmp_path, canary, form):
    """The attack is a true one: without the guard it works."""
    path, poison = tmp_path / "checkpoint_final.pth", tmp_path / "poison.txt"
    poison.write_text("dead", encoding="utf-8")
    write_hostile(path, form, Hostile(poison, canary))
    if isinstance(form, str):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert canary.read_text(encoding="utf-8") == "dead"


def test_a_shell_command_in_a_checkpoint_is_refused_by_name(tmp_path, canary):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(b"cos\nsystem\n(S'rm " + str(canary).encode() + b"'\ntR.")
    with pytest.raises(UsageError, match=r"asks for os\.system when it is opened"):
        load_official(path)
    assert canary.exists()


@pytest.mark.parametrize(
    ("harmless", "name"),
    [(np.zeros(3), r"numpy\.\w+\.multiarray\._reconstruct, numpy\.ndarray"), (Path("a"), r"pathlib\.PosixPath")],
)
def test_even_a_harmless_object_that_is_no_plain_data_is_refused_by_name(saved, harmless, name):
    with pytest.raises(UsageError, match=f"asks for {name}.* when it is opened"):
        load_official(saved({"network_weights": {}, "best": harmless}))


def test_numpys_numbers_are_read_as_pythons(saved):
    from uumamba.nets.safe_reading import read_checkpoint

    kinds = (np.float64, np.float32, np.float16, np.int64, np.int8, np.uint32, np.bool_)
    numbers = read_checkpoint(saved([kind(1) for kind in kinds] + [np.array(-2.5, dtype=">f8")[()]]))
    assert numbers == [1.0, 1.0, 1.0, 1, 1, 1, True, -2.5]
    assert {type(number) for number in numbers} == {float, int, bool}


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", b"\x80\x02}q\x00."])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(content)
    with pytest.raises(
        UsageError, match=r"checkpoint_final\.pth cannot be read as a checkpoint of torch.save \(.*fetch"
    ):
        load_official(path)


def test_a_cut_checkpoint_is_refused(saved):
    path = saved(trainer_checkpoint(small_net("UMambaBot", 2)))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UsageError, match="cannot be read as a checkpoint"):
        load_official(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.pth is no file; give a checkpoint"):
        load_official(tmp_path / "nowhere.pth")
