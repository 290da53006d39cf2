"""Regions and ignored voxels from prepared cases to the report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.pipelines.label_phantom import NESTED, PARTITION, prepare_phantom, write_phantom_manifest
from tests.pipelines.run_files import LAST, MakeConfig, Refused, job_of, read_json
from uumamba.config import RunConfig
from uumamba.data.case import Manifest
from uumamba.data.dataset import batches
from uumamba.data.label_scheme import IGNORED, LabelScheme
from uumamba.data.prepared import PreparedFolder
from uumamba.data.scan import read_label
from uumamba.pipelines import load_predictor
from uumamba.pipelines.build import WholeCaseValidation, build_dataset, build_trainer
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.jobs import list_jobs
from uumamba.pipelines.models import load_initial_weights
from uumamba.pipelines.postprocessing import CHOICE_NAME
from uumamba.pipelines.predict import predict
from uumamba.pipelines.report import report
from uumamba.pipelines.train import train
from uumamba.training import read_checkpoint

KEPT = ("preprocess.spacing_mm=null",)
COLOURS = {"whole": "#123456", "core": "#654321"}
ORDER = (2, 5)
REGIONS: dict[str, Any] = {"regions": NESTED, "regions_class_order": ORDER, "colours": COLOURS}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def plain(raw: Path) -> Manifest:
    return write_phantom_manifest(raw / "plain")


@pytest.fixture(scope="module")
def regional(plain: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_phantom(tmp_path_factory.mktemp("regions"), replace(plain, **REGIONS))


@pytest.fixture(scope="module")
def sparse(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = write_phantom_manifest(raw / "sparse", ignores=True)
    return prepare_phantom(tmp_path_factory.mktemp("sparse"), manifest)


@pytest.fixture(scope="module")
def small(tiny_config: MakeConfig) -> Callable[..., RunConfig]:
    """Return tiny configurations for the phantom's spacing."""
    return lambda *overrides: tiny_config("preprocess.spacing_mm=[null,null,null]", *overrides)


@pytest.fixture(scope="module")
def region_run(regional: Path, small: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("region_run")
    config = small("inference.postprocess=auto", "inference.mirror=true")
    train(config, data=regional, out=out / "run", progress=False)
    return out


def test_a_run_of_regions_predicts_scores_and_reports_each_region(region_run: Path, regional: Path) -> None:
    stored = read_checkpoint(region_run / "run" / LAST).config
    assert (stored["regions"], stored["regions_class_order"]) == ({"whole": [2, 5], "core": [5]}, [2, 5])
    assert stored["colours"] == COLOURS
    assert {*read_json(region_run / "run/fold_0" / CHOICE_NAME)["postprocess"]} <= {"union"}
    predictor = load_predictor(region_run / "run")
    assert [net(torch.zeros(1, 1, 48, 48)).shape[1] for net in predictor.nets] == [2]
    predict(
        region_run / "run",
        [regional],
        out=region_run / "predictions",
        case_fold=0,
        save_probabilities=True,
        progress=False,
    )
    label = read_label(region_run / "predictions/p0.nii.gz", structures={"oedema": 2, "core": 5}).array
    probabilities = nib.load(region_run / "predictions/probabilities/p0.nii.gz")
    assert probabilities.shape == (*label.shape, 2)
    assert json.loads(probabilities.header.extensions[0].get_content()) == {"names": ["whole", "core"]}
    case = PreparedFolder(regional).manifest.by_id("p0")
    scores = evaluate_folder(region_run / "predictions", regional, region_run, fold=0)
    assert [(row.case_id, row.structure) for row in scores.rows] == [("p0", "whole"), ("p0", "core")]
    truth = read_label(case.label, structures={"oedema": 2, "core": 5}).array
    both = 2 * ((label > 0) & (truth > 0)).sum() / ((label > 0).sum() + (truth > 0).sum())
    assert scores.rows[0].dice == pytest.approx(both)
    (region_run / "prepared").symlink_to(regional)
    html = report(region_run, region_run / "report.html").read_text(encoding="utf-8")
    assert all(colour in html for colour in COLOURS.values())


def test_probabilities_of_regions_are_the_mean_sigmoid_over_networks_and_mirrors(
    region_run: Path, regional: Path
) -> None:
    predictor = load_predictor(region_run / "run")
    (net,) = predictor.nets
    image = PreparedFolder(regional).case("p0").image[:, :1]
    found = predictor.prepared_probabilities(np.asarray(image))
    x = torch.from_numpy(np.array(image, dtype=np.float32))[:, 0][None]
    with torch.no_grad():
        flips: list[list[int]] = [[], [2], [3], [2, 3]]
        expected = torch.stack([net(x.flip(dims)).sigmoid().flip(dims) for dims in flips]).mean(0)
    np.testing.assert_allclose(found[:, 0], expected[0].numpy(), atol=1e-5)
    painted = predictor.find_label(found)
    assert np.array_equal(painted > 0, (found > 0.5).any(axis=0))
    assert np.array_equal(painted == 2, found[1] > 0.5), "the core is painted last"


def test_validation_and_choice_of_postprocessing_are_of_regions_and_without_ignored_voxels(
    regional: Path, sparse: Path, small: Callable[..., RunConfig]
) -> None:
    class Always(nn.Module):
        """Predict class or region 1 and nothing else at rows below 30."""

        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.outputs = outputs

        def forward(self, image: Tensor) -> Tensor:
            found = torch.full((len(image), self.outputs, *image.shape[2:]), -9.0)
            found[:, 0 if self.outputs == 2 else 1] = 9.0
            return found

    for folder, outputs, names in ((regional, 2, NESTED), (sparse, 3, PARTITION)):
        validate = WholeCaseValidation(small(), PreparedFolder(folder), ["p0"], device="cpu")
        found = validate(Always(outputs))
        assert found.keys() == {"dice", *(f"dice_{name}" for name in names)}
        label = np.asarray(PreparedFolder(folder).case("p0").label)
        known = label != IGNORED
        first = np.isin(label, [1, 2] if outputs == 2 else [1])
        assert found[f"dice_{next(iter(names))}"] == pytest.approx(2 * first.sum() / (known.sum() + first.sum()))


def test_heads_start_fresh_between_models_of_regions_and_of_structures(
    region_run: Path, small: Callable[..., RunConfig]
) -> None:
    net = small().build_net(classes=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.warns(UserWarning, match="the heads decoder.seg_layers.* start fresh"):
        fresh = load_initial_weights(net, region_run / "run", labels=LabelScheme({"any": 1}))
    assert {name for name in before if "seg_layers" in name} == {*fresh}
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in fresh)
    assert load_initial_weights(net, region_run / "run", labels=LabelScheme({"any": 1}, **REGIONS)) == []


SMALL = "{name: UMambaBot, spatial_dims: 2, features: [4,8], strides: [[1,1],[2,2]]}"


@pytest.mark.parametrize(
    ("key", "override", "got"),
    [
        ("loss.mode", "loss={name: uncertainty_weighted, mode: released_code}", "released_code"),
        ("optim.ascent", "optim.ascent={name: output_bias_forgetting}", "output_bias_forgetting"),
        (
            "domain_generalization",
            "domain_generalization={name: UDIM, perturbation: {name: input, rms: 0.1}}",
            "UDIM",
        ),
        ("training.useful", "training.useful={most_epochs: 2}", "a probe of classes"),
        ("net.name", f"net={{name: CoarseToFine, factor: [2,2], coarse: {SMALL}, fine: {SMALL}}}", "CoarseToFine"),
        ("augment.swap_sides", "augment.swap_sides=true", True),
        ("inference.postprocess", "inference.postprocess=[core]", "core"),
    ],
)
def test_parts_that_need_one_class_per_voxel_are_refused_by_name_for_regions(
    key: str, override: str, got: str, regional: Path, small: Callable[..., RunConfig], refused: Refused, tmp_path: Path
) -> None:
    with refused(key, got=got):
        list_jobs(small(override), PreparedFolder(regional), fold="0", out=tmp_path)


SAM = "optim={{name: {}, base: {{name: SGD, lr: 0.1}}}}"
OBF = "optim={{name: SAM, base: {{name: SGD, lr: 0.1}}, ascent: {{name: output_bias_forgetting{}}}}}"
STEPS = {
    **{name: (SAM.format(name),) for name in ("Plain", "SAM", "TRAM", "GSAM")},
    "OBF": (OBF.format(""),),
    "OBF by class": (OBF.format(", class_mean: true"),),
    "MESA": (SAM.format("Plain"), "objective={name: MESA, decay: 0.5}"),
    **{
        f"terms {terms}": (SAM.format("Plain"), f"loss={{name: uncertainty_weighted, terms: [{terms}]}}")
        for terms in ("region, distribution, pixel", "pixel_by_class", "centreline")
    },
    "released code": (SAM.format("Plain"), "loss={name: uncertainty_weighted, mode: released_code}"),
    "Dice and cross entropy": (SAM.format("SAM"), "loss={name: dice_cross_entropy}"),
}


NOT_OF_REGIONS = ("OBF", "OBF by class", "released code")  # refused, see above


@pytest.mark.parametrize(
    ("choice", "regions"),
    [(each, regions) for each in STEPS for regions in (False, True) if not regions or each not in NOT_OF_REGIONS],
)
def test_ignored_voxels_change_no_weight_of_a_training_step(
    choice: str, regions: bool, sparse: Path, small: Callable[..., RunConfig]
) -> None:
    folder, config = PreparedFolder(sparse), small(*STEPS[choice])
    if regions:
        folder.manifest = replace(folder.manifest, **REGIONS)
    job = job_of(config, folder)
    batch = next(iter(batches(build_dataset(config, folder, job.training_ids), 0)))
    ignored = batch["label"] == IGNORED
    assert 0.1 < ignored.float().mean() < 0.9

    def shift(value: float) -> Callable[..., Any]:
        """Make a hook that adds to the logits at ignored voxels, another number for each output."""

        def add(logits: Tensor) -> Tensor:
            rows, columns = (old // new for old, new in zip(ignored.shape[2:], logits.shape[2:], strict=True))
            added = value * torch.arange(logits.shape[1]).reshape(1, -1, 1, 1)
            return torch.where(ignored[:, :, ::rows, ::columns], logits + added, logits)

        return lambda net, args, outputs: [add(each) for each in outputs]

    weights = []
    for value in (0.0, 3.0):
        trainer = build_trainer(job, folder, run_dir=None, observers=())
        trainer.net.train().register_forward_hook(shift(value))
        for _ in range(2):
            trainer.step.take(batch)
            if hasattr(trainer.objective, "after_step"):
                trainer.objective.after_step(trainer.net)
        weights.append([*trainer.net.state_dict().values(), *trainer.objective.state_dict().values()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    fresh = build_trainer(job, folder, run_dir=None, observers=())
    assert not all(torch.equal(*pair) for pair in zip(weights[0], fresh.net.state_dict().values(), strict=False)), (
        "the steps trained"
    )


def test_ignored_voxels_are_no_score_and_a_prediction_holds_none(
    sparse: Path, small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    train(small("inference.postprocess=auto"), data=sparse, out=tmp_path / "run", progress=False)
    predict(tmp_path / "run", [sparse], out=tmp_path / "predictions", case_fold=0, progress=False)
    prediction = read_label(tmp_path / "predictions/p0.nii.gz", structures={"oedema": 2, "core": 5}).array
    label = read_label(
        PreparedFolder(sparse).manifest.by_id("p0").label, structures={"oedema": 2, "core": 5}, ignore_value=9
    ).array
    scores = evaluate_folder(tmp_path / "predictions", sparse, tmp_path, fold=0)
    found, truth = (prediction == 2) & (label != 9), label == 2
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert scores.rows[0].dice == pytest.approx(expected)
    (tmp_path / "prepared").symlink_to(sparse)
    assert "Voxels that the label ignores" in report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    config = read_json(tmp_path / "run/fold_0/config.json")
    assert (config["ignore_value"], "regions" in config) == (9, False)


def test_slow_cases_and_unknown_domains_leave_ignored_voxels_out(
    sparse: Path, small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = small(
        "training.useful={most_epochs: 2, views: 1}",
        "domain_generalization={name: UDIM, warmup_fraction: 0, voxels_a_class: 64, second_order: finite_difference,"
        " perturbation: {name: input, rms: 0.1}}",
    )
    (fold,) = train(config, data=sparse, out=tmp_path, progress=False)
    rows = [json.loads(line) for line in (fold / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped_steps"] == 0
    assert rows[-1]["udim"]["penalty"] > 0


@pytest.mark.slow
def test_regions_that_are_a_partition_train_as_labels_and_nested_ones_stay_nested(
    plain: Manifest, small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = small(
        "training.epochs=5", "training.batches_per_epoch=25", "training.batch_size=4", "training.validate_every=5",
        "optim={name: Plain, base: {name: AdamW, lr: 0.01}}", "net.name=ResEncUNet", "net.features=[8,16,16]",
    )  # fmt: skip
    schemes = {"labels": {}, "partition": REGIONS | {"regions": PARTITION, "colours": {}}, "nested": REGIONS}
    dice: dict[str, list[float]] = {}
    for name, scheme in schemes.items():
        out = tmp_path / name
        data = prepare_phantom(out / "prepared", replace(plain, **scheme))
        train(config, data=data, out=out / "run", progress=False)
        predict(out / "run", [data], out=out / "predictions", case_fold=0, progress=False)
        dice[name] = [row.dice for row in evaluate_folder(out / "predictions", data, out, fold=0).rows]
    assert min(min(each) for each in dice.values()) > 0.9
    assert dice["partition"] == pytest.approx(dice["labels"], abs=0.03)
    label = read_label(tmp_path / "nested/predictions/p0.nii.gz", structures={"oedema": 2, "core": 5}).array
    core = label[..., 1] == 5
    around = np.roll(core, 1, 0) | np.roll(core, -1, 0) | np.roll(core, 1, 1) | np.roll(core, -1, 1)
    assert (label[..., 1][around] > 0).all(), "the core lies within the whole"


@pytest.mark.parametrize(
    ("key", "prepared", "other"),
    [
        ("structures", "{oedema: 2, core: 5}", "{oedema: 5, core: 2}"),
        ("ignore_value", None, "7"),
        ("regions", "{whole: [2, 5], core: [5]}", "{core: [5], whole: [2, 5]}"),
        ("regions_class_order", "[2, 5]", "[5, 2]"),
        ("colours", '{whole: "#123456", core: "#654321"}', '{core: "#111111"}'),
    ],
)
def test_labels_of_the_configuration_must_be_those_of_the_prepared_cases(
    key: str,
    prepared: str | None,
    other: str,
    regional: Path,
    small: Callable[..., RunConfig],
    tmp_path: Path,
    refused: Refused,
) -> None:
    folder = PreparedFolder(regional)
    if prepared is not None:
        same = small("dataset.name=folder", f"dataset.{key}={prepared}")
        assert list_jobs(same, folder, fold="0", out=tmp_path / "run")
    with refused(f"dataset.{key}"):
        list_jobs(small("dataset.name=folder", f"dataset.{key}={other}"), folder, fold="0", out=tmp_path / "run")
