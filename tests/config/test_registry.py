"""Every part of the registry: defaults, documentation, and values that are refused."""

import ast
import inspect
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pkgutil import resolve_name
from typing import Any, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel
from torch import nn

from benchmarks.reference.option_meanings import read_meanings, read_section_meanings
from uumamba.config import read_config
from uumamba.config.bind import (
    REQUIRED,
    UNKNOWN,
    Option,
    bind,
    list_options,
    list_signatures,
    load_constructor,
    read_default,
    read_part,
    takes,
)
from uumamba.config.data import PreprocessConfig
from uumamba.config.registry import KINDS, STAGE_NETS
from uumamba.config.run_config import RunConfig
from uumamba.config.training import InferenceConfig, SamplingConfig, TrainingConfig, UsefulConfig
from uumamba.data.dataset import PatchDataset
from uumamba.data.recipe import PreprocessRecipe
from uumamba.data.sampling import Sampling
from uumamba.domain_generalization import USEFUL
from uumamba.federated import ring
from uumamba.inference import Predictor
from uumamba.runtime.errors import UsageError
from uumamba.runtime.options import read_value
from uumamba.training.run_folder import RunFolder
from uumamba.training.trainer_options import StepOptions

PARTS = [(kind, name) for kind, rules in KINDS.items() for name in rules.parts]
STAGE_NET = {"name": "ResEncUNet", "spatial_dims": 2, "features": (4, 8), "strides": (1, 2)}
SMALLEST: dict[tuple[str, str], dict[str, Any]] = {
    **{("optim", name): {"base": {"name": "SGD"}} for name in KINDS["optim"].parts},
    **{("net", name): {"spatial_dims": 2, "features": (4, 8), "strides": ((1, 1), (2, 2))} for name in STAGE_NETS},
    **{("net of a cascade", name): {"spatial_dims": 2, "features": (4, 8), "strides": (1, 2)} for name in STAGE_NETS},
    ("net", "CoarseToFine"): {"coarse": STAGE_NET, "fine": STAGE_NET, "factor": (2, 2)},
    ("net", "DynUNet"): {
        "spatial_dims": 2,
        "features": (4, 8, 8),
        "strides": ((1, 1), (2, 2), (2, 2)),
        "kernel_sizes": ((3, 3),) * 3,
    },
    **{("net", name): {"spatial_dims": 2} for name in ("SegResNet", "UNETR", "SwinUNETR")},
    ("domain_generalization", "UDIM"): {"perturbation": {"name": "style"}},
    ("federated", "DFedSAM"): {"topology": {"name": "ring"}},
    ("trigger", "AdaptiveTrigger"): {"total_steps": 10},
    ("ct_statistics", "CtStatistics"): {"low_hu": -50.0, "high_hu": 500.0, "mean_hu": 250.0, "std_hu": 100.0},
}
"""Options without a default, with a valid value."""
FROM_DATA = {"in_channels": 1, "out_channels": 2, "patch_size": (8, 8)}
SUPPLIED: dict[str, dict[str, Any]] = {
    "optim": {"params": [nn.Parameter(torch.ones(2))], "base": partial(torch.optim.SGD, lr=0.1)},
    "domain_generalization": {"net": nn.Linear(2, 2), "loss": nn.MSELoss(), "perturbation": None},
    "schedule": {"optimizer": None, "total_steps": 5, "budget": None},
    "federated": {"objective": None, "optimizer": None, "topology": ring(4)},
    "topology": {"clients": 8},
    "quantization": {"net": nn.Linear(2, 2)},
    "gaqat": {"optimizer": None, "net": nn.Linear(2, 2)},
    "net": FROM_DATA,
    "net of a cascade": FROM_DATA,
}
"""Arguments before the first check of an option that a constructor passes on."""
each_part = pytest.mark.parametrize(("kind", "name"), PARTS, ids=[f"{kind} {name}" for kind, name in PARTS])


def smallest(kind: str, name: str) -> dict[str, Any]:
    return SMALLEST.get((kind, name), {})


def section(kind: str, name: str, **options: Any) -> dict[str, Any]:
    """Write a section of a configuration with the smallest options."""
    return ({} if KINDS[kind].only else {"name": name}) | smallest(kind, name) | options


@each_part
def test_an_empty_section_has_the_defaults_of_the_signature(kind: str, name: str) -> None:
    part = read_part(kind, section(kind, name))
    for key, option in list_options(kind, name).items():
        if key in smallest(kind, name):
            continue
        assert option.default is not REQUIRED, key
        assert part.options[key] == option.default, key
        if option.nested is None:
            assert read_value(option.annotation, option.default, key) == option.default


@each_part
def test_a_default_of_section_and_constructor_is_the_same(kind: str, name: str) -> None:
    section_of = KINDS[kind].section
    declared = [load_constructor(kind, name), *([] if section_of is None else [resolve_name(section_of)])]
    for key, option in list_options(kind, name).items():
        found = [read_default(each, key) for made in declared for each in list_signatures(made)]
        assert all(default in (REQUIRED, option.default) for default in found), key


def list_repeated_defaults(made: Callable[..., Any]) -> set[str]:
    """List arguments with a literal default that a constructor which gets them has as well."""
    made = inspect.unwrap(made)
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(made))).body
    assert isinstance(tree, ast.FunctionDef)
    known = dict(vars(sys.modules[made.__module__]))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            known |= {each.name: resolve_name(f"{node.module}:{each.name}") for each in node.names}
    positional = zip(reversed(tree.args.args), reversed(tree.args.defaults), strict=False)
    defaults = [*positional, *zip(tree.args.kwonlyargs, tree.args.kw_defaults, strict=True)]
    literal = {argument.arg for argument, default in defaults if isinstance(default, ast.Constant | ast.Tuple)}
    literal -= {argument.arg for argument, default in defaults if getattr(default, "value", 1) is None}  # no value
    repeated = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and isinstance(known.get(call.func.id), type):
            for keyword in call.keywords:
                passed = {node.id for node in ast.walk(keyword.value) if isinstance(node, ast.Name)}
                if keyword.arg and read_default(known[call.func.id], keyword.arg) is not REQUIRED:
                    repeated |= passed & literal
    return repeated


@pytest.mark.parametrize(("kind", "name"), [each for each in PARTS if inspect.isfunction(load_constructor(*each))])
def test_a_function_repeats_no_default_of_a_constructor_that_it_calls(kind: str, name: str) -> None:
    assert list_repeated_defaults(load_constructor(kind, name)) == set()


def repeats(*, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), weight: float = 0.1) -> Any:
    from torch.optim import AdamW

    return partial(AdamW(params=[torch.ones(1)], lr=lr, betas=tuple(betas)), weight)


def test_a_repeated_default_is_found() -> None:
    assert list_repeated_defaults(repeats) == {"lr", "betas"}


@pytest.mark.parametrize(
    ("kind", "name", "library"),
    [
        ("base", "SGD", "torch.optim:SGD"),
        ("base", "AdamW", "torch.optim:AdamW"),
        ("net", "SegResNet", "monai.networks.nets.segresnet:SegResNet"),
        ("net", "UNETR", "monai.networks.nets.unetr:UNETR"),
        ("net", "SwinUNETR", "monai.networks.nets.swin_unetr:SwinUNETR"),
    ],
)
def test_a_library_s_constructor_has_the_defaults_of_its_part(kind: str, name: str, library: str) -> None:
    given = smallest(kind, name)
    stored = read_part(kind, section(kind, name)).options
    expected = {key: read_default(library, key) for key in stored.keys() - given.keys()}
    assert expected == {key: stored[key] for key in expected}
    assert expected


@each_part
def test_every_argument_is_an_option_or_supplied_by_the_run(kind: str, name: str) -> None:
    known = list_options(kind, name)
    needed = {
        key
        for key, each in inspect.signature(load_constructor(kind, name)).parameters.items()
        if each.default is REQUIRED and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    }
    assert needed <= known.keys() | KINDS[kind].supplied


@each_part
def test_every_option_is_documented_without_its_default(kind: str, name: str) -> None:
    meanings = read_meanings(kind, name)
    assert list_options(kind, name).keys() <= meanings.keys()
    assert not any("default" in meaning.lower() for meaning in meanings.values())


def list_models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for each in (field.annotation, *get_args(field.annotation)):
            if isinstance(each, type) and issubclass(each, BaseModel):
                yield from list_models(each)


@pytest.mark.parametrize("model", [*list_models(RunConfig)])
def test_every_key_of_a_section_with_a_model_is_documented_without_its_default(model: type[BaseModel]) -> None:
    meanings = read_section_meanings(model)
    assert meanings.keys() == {field.alias or name for name, field in model.model_fields.items()}
    assert not any("default" in meaning.lower() for meaning in meanings.values())


@pytest.mark.parametrize(
    ("model", "key", "constructor"),
    [
        (PreprocessConfig, "normalisation", PreprocessRecipe),
        (PreprocessConfig, "clip_percentiles", PreprocessRecipe),
        (TrainingConfig, "foreground_fraction", PatchDataset),
        (TrainingConfig, "neighbour_slices", PatchDataset),
        (TrainingConfig, "max_skipped_in_a_row", StepOptions),
        (TrainingConfig, "save_every_minutes", RunFolder),
        (SamplingConfig, "forced", Sampling),
        (SamplingConfig, "classes", Sampling),
        (SamplingConfig, "content_fraction", Sampling),
        (UsefulConfig, "slowing", USEFUL),
        (UsefulConfig, "factor", USEFUL),
        (InferenceConfig, "overlap", Predictor),
    ],
)
def test_a_key_of_a_section_has_the_default_of_its_constructor(
    model: type[BaseModel], key: str, constructor: Any
) -> None:
    assert model.model_fields[key].default == read_default(constructor, key)


@each_part
def test_a_part_is_written_to_json_and_pickled_and_reads_back_equal(kind: str, name: str) -> None:
    part = read_part(kind, section(kind, name))
    assert read_part(kind, part.as_json()) == part == pickle.loads(pickle.dumps(part))
    assert bind(kind, name, smallest(kind, name)).keywords.keys() <= part.options.keys()


def is_number(option: Option) -> bool:
    kinds = [option.annotation, *get_args(option.annotation)]
    numbers = [each for each in kinds for part in (each, *get_args(each)) if part in (int, float)]
    return bool(numbers) and get_origin(option.annotation) not in (tuple, dict)


def fits(annotation: Any, value: Any) -> bool:
    try:
        read_value(annotation, value, "key")
    except UsageError:
        return False
    return True


def wrong_values() -> Iterator[Any]:
    for kind, name in PARTS:
        for key, option in list_options(kind, name).items():
            if option.nested is not None or not is_number(option):
                continue
            for value in (-1, float("nan"), True, float("inf"), "x"):
                if not fits(option.annotation, value):
                    yield pytest.param(kind, name, key, value, id=f"{kind} {name} {key} {value}")


@pytest.mark.parametrize(("kind", "name", "key", "value"), [*wrong_values()])
def test_a_wrong_number_is_refused_with_its_key_by_section_and_constructor(refused, kind, name, key, value) -> None:
    with refused(f"place.{key}") as error:
        read_part(kind, section(kind, name, **{key: value}), "place")
    assert error.value.expected
    if list_options(kind, name)[key].is_argument:
        with refused(key):
            constructor = load_constructor(kind, name)
            given = {key: each for key, each in SUPPLIED.get(kind, {}).items() if takes(constructor, key)}
            constructor(**given | (smallest(kind, name) if "net" in kind else {}) | {key: value})


@each_part
def test_a_misspelt_key_is_refused_with_the_nearest_one(refused, kind: str, name: str) -> None:
    for key in list_options(kind, name):
        with refused(f"place.{key}x", got=UNKNOWN) as error:
            read_part(kind, section(kind, name, **{f"{key}x": 1}), "place")
        assert key in error.value.expected


@pytest.mark.parametrize("kind", [kind for kind, rules in KINDS.items() if not rules.only])
def test_an_unknown_name_is_refused_with_the_known_ones(refused, kind: str) -> None:
    with refused("place.name", got="Unheard") as error:
        read_part(kind, {"name": "Unheard"}, "place")
    assert all(name in error.value.expected for name in KINDS[kind].parts)
    if KINDS[kind].default is None:
        with refused("place.name", got="nothing"):
            read_part(kind, {}, "place")


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ({"base": {"name": "SGD", "lr": True}}, "place.base.lr"),
        ({"base": {"name": "AdamW", "betas": [0.9, True]}}, "place.base.betas.1"),
        ({"base": {"name": "SGD", "momentun": 0.9}}, "place.base.momentun"),
        ({"base": {"name": "LBFGS"}}, "place.base.name"),
        ({"ascent": {"name": "output_bias_forgetting", "gama": 1}}, "place.ascent.gama"),
    ],
)
def test_a_nested_part_is_refused_with_its_whole_path(refused, stored: dict[str, Any], key: str) -> None:
    with refused(key):
        read_part("optim", {"name": "SAM", "base": {"name": "SGD"}} | stored, "place")


def test_text_that_yaml_reads_for_a_number_is_one() -> None:
    assert read_config("demo", ["optim.base.lr=1e-3"]).optim.base.lr == 1e-3


def test_options_are_attributes_and_an_absent_one_is_an_attribute_error() -> None:
    part = read_config("demo").optim
    assert part.rho == part.options["rho"] == 0.05
    with pytest.raises(AttributeError, match="SAM has no option radius"):
        part.radius  # noqa: B018


def test_a_keyword_family_has_the_types_of_the_engine() -> None:
    from typing import get_type_hints

    from uumamba.optim import EngineOptions, SharpnessAware

    family = get_type_hints(EngineOptions, include_extras=True)
    engine = get_type_hints(SharpnessAware.__init__, include_extras=True)
    assert family.items() <= engine.items()


def test_an_error_of_bind_names_the_place() -> None:
    with pytest.raises(UsageError) as error:
        bind("optim", "SAM", {"rho": -1, "base": {"name": "SGD"}}, "optim")
    assert (error.value.key, error.value.got) == ("optim.rho", -1)
