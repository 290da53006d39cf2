"""Planted faults: one-line mistakes, each of which a test must catch.

Run by hand, about ten minutes on two cores: ``python tests/planted_faults.py``. Each fault is applied to a temporary
copy of the checkout, and one test file runs there; the checkout itself is not touched. The faults were written from the
source alone, without a look at the tests. A fault that no test catches stays in the list with ``caught=False``.

Exit codes: 0 every outcome is as the list says, 1 some are not, 2 a record does not fit the source any more.
"""

import argparse
import inspect
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("uumamba", "data_prep", "tests", "configs", "benchmarks")
LIMIT_S = 120.0


@dataclass(frozen=True)
class Fault:
    """One line made wrong.

    Args:
        public_name: a public object, or a module where no public object owns the line; its source file is changed.
        old: text that occurs exactly once in that file.
        new: text that takes its place.
        test_file: the test file that must fail.
        caught: False for a known gap: the test file passes all the same.
    """

    public_name: str
    old: str
    new: str
    test_file: str
    caught: bool = True


@dataclass(frozen=True)
class Outcome:
    """Result of one fault: ``caught``, ``missed``, ``timed out`` or pytest's exit code, and the first failing test."""

    fault: Fault
    outcome: str
    failed_test: str
    seconds: float

    @property
    def is_expected(self) -> bool:
        """Whether the list says the same."""
        return self.outcome == ("caught" if self.fault.caught else "missed")


FAULTS = (
    # nets
    Fault(  # stages counted from the wrong end
        "uumamba.nets.UMambaEnc",
        old="(stages - 1 - stage) % 2 == 0",
        new="stage % 2 == 0",
        test_file="tests/nets/test_umamba.py",
    ),
    Fault(  # pickled code is run
        "uumamba.nets.safe_reading",
        old='map_location="cpu", weights_only=True',
        new='map_location="cpu", weights_only=False',
        test_file="tests/nets/test_official.py",
    ),
    # losses
    Fault(  # missing factor
        "uumamba.losses.UncertaintyWeightedLoss",
        old="weighted = 0.5 * torch.exp(-self.log_variances) * values",
        new="weighted = torch.exp(-self.log_variances) * values",
        test_file="tests/losses/test_uncertainty.py",
    ),
    Fault(  # ignored voxels in the denominator
        "uumamba.losses.CrossEntropyLoss",
        old="return values.sum() / valid.sum().clamp_min(1)",
        new="return values.mean()",
        test_file="tests/losses/test_cross_entropy.py",
    ),
    Fault(  # wrong default
        "uumamba.losses.SoftDiceLoss",
        old="include_background: bool = False,",
        new="include_background: bool = True,",
        test_file="tests/losses/test_dice.py",
    ),
    # optim
    Fault(  # forgotten clone
        "uumamba.optim.frozen_running_statistics",
        old="getattr(*found).clone())",
        new="getattr(*found))",
        test_file="tests/optim/test_restore.py",
    ),
    Fault(  # one scaling too few
        "uumamba.optim.ASAM",
        old="scaled[index], direction[index] = one, two",
        new="scaled[index], direction[index] = one, one",
        test_file="tests/optim/test_formulas.py",
    ),
    Fault(  # running mean in the scaler's units
        "uumamba.optim.FriendlySAM",
        old="torch._foreach_add_(means, grads, alpha=(1 - lam) / scale)",
        new="torch._foreach_add_(means, grads, alpha=1 - lam)",
        test_file="tests/optim/test_formulas.py",
    ),
    # metrics
    Fault(  # directions pooled before the percentile
        "uumamba.metrics.hausdorff_distance",
        old="for direction in (distances.prediction_to_label, distances.label_to_prediction)",
        new="for direction in (distances.both,)",
        test_file="tests/metrics/test_hausdorff.py",
    ),
    Fault(  # spacing order reversed
        "uumamba.metrics.surface_distances",
        old="np.asarray(spacing_mm, dtype=np.float64)",
        new="np.asarray(spacing_mm[::-1], dtype=np.float64)",
        test_file="tests/metrics/test_surface.py",
    ),
    Fault(  # neighbours by faces alone
        "uumamba.metrics.betti_numbers",
        old="label_components(cut, np.ones((3,) * cut.ndim))[1]",
        new="label_components(cut)[1]",
        test_file="tests/metrics/test_topology.py",
    ),
    # domain_generalization
    Fault(  # variance about its own mean, as in Fishr
        "uumamba.domain_generalization.variance_gap",
        old="- 2 * mu * (mu - target.mean())",
        new="- (mu.square() - target.mean().square())",
        test_file="tests/domain_generalization/test_inconsistency.py",
    ),
    Fault(  # mean of means of different lengths
        "uumamba.domain_generalization.SWAD",
        old="share = int(other.n_averaged) / int(other.n_averaged + average.n_averaged)",
        new="share = 0.5",
        test_file="tests/domain_generalization/test_swad.py",
    ),
    Fault(  # seed key without the epoch
        "uumamba.domain_generalization.UpsampledSampler",
        old='generator_for(self.seed, "order", self.epoch)',
        new='generator_for(self.seed, "order")',
        test_file="tests/domain_generalization/test_upsampling.py",
    ),
    # quantization
    Fault(  # one level too many
        "uumamba.quantization.levels",
        old="2 ** (bits - 1) - 1) if signed",
        new="2 ** (bits - 1)) if signed",
        test_file="tests/quantization/test_quantize.py",
    ),
    Fault(  # rounding half up
        "uumamba.quantization.fake_quantize",
        old=".clamp(low, high).round() * used)",
        new=".clamp(low, high).add(0.5).floor() * used)",
        test_file="tests/quantization/test_fake_quantize.py",
    ),
    Fault(  # skipped steps counted
        "uumamba.quantization.GAQAT",
        old="if self._task is None or self.optimizer.skipped_steps != self._skipped_before:",
        new="if self._task is None:",
        test_file="tests/quantization/test_gaqat.py",
    ),
    # ops
    Fault(  # cropped at the wrong end, so not causal
        "uumamba.ops.causal_convolution",
        old="groups=x.shape[1])[..., :length])",
        new="groups=x.shape[1])[..., -length:])",
        test_file="tests/ops/test_convolution.py",
    ),
    Fault(  # factors swapped in the second derivative
        "uumamba.ops.linear_recurrence",
        old="return backwards * _previous(forwards), gradient, None",
        new="return forwards * _previous(backwards), gradient, None",
        test_file="tests/ops/test_linear_recurrence.py",
    ),
    # data
    Fault(  # spacing reversed in place of permuted
        "uumamba.data.Geometry",
        old="oriented_spacing = _triple(spacing[axis] for axis in axes)",
        new="oriented_spacing = _triple(reversed(spacing))",
        test_file="tests/data/test_preprocess.py",
    ),
    Fault(  # label interpolated linearly
        "uumamba.data.augmentation.Affine",
        old='mode="nearest", border="zeros"',
        new='mode="bilinear", border="zeros"',
        test_file="tests/data/augmentation/test_affine.py",
    ),
    Fault(  # label map keeps the image's intensity scaling
        "uumamba.data.formats.nifti",
        old="kept.set_slope_inter(1, 0)",
        new="pass",
        test_file="tests/data/test_nifti.py",
    ),
    Fault(  # off by one: the last position is never drawn
        "uumamba.data.patch",
        old="torch.randint(available - length + 1, ()",
        new="torch.randint(available - length, ()",
        test_file="tests/data/test_patch.py",
    ),
    # inference
    Fault(  # weighted sum divided by the number of windows
        "uumamba.inference.slab_blending",
        old=".add_(weight[(planes, *source)])",
        new=".add_(1)",
        test_file="tests/inference/test_sliding_window.py",
    ),
    Fault(  # off by one in the ring of planes
        "uumamba.inference.slab_blending",
        old="turn = self._depth - start[0] % self._depth",
        new="turn = self._depth - (start[0] + 1) % self._depth",
        test_file="tests/inference/test_slab_blending.py",
    ),
    Fault(  # windows that begin before a strip of rows are missing
        "uumamba.inference.slab_blending",
        old="first < high and first + window > low for",
        new="low <= first < high for",
        test_file="tests/inference/test_slab_blending.py",
    ),
    Fault(  # smallest component instead of the largest
        "uumamba.inference.postprocess",
        old="weights=np.concatenate(sizes)).argmax()",
        new="weights=np.concatenate(sizes)).argmin()",
        test_file="tests/inference/test_postprocess.py",
    ),
    Fault(  # the neighbours after the last slice are empty
        "uumamba.inference.plane_image",
        old="yield from repeat(edge, count)",
        new="yield from repeat(edge * 0, count)",
        test_file="tests/data/test_dataset.py",
    ),
    Fault(  # one limit of a range is enough
        "uumamba.runtime.options",
        old="is_valid = all(limit.holds(found)",
        new="is_valid = any(limit.holds(found)",
        test_file="tests/config/test_registry.py",
    ),
    Fault(  # missing softmax of all networks but the first
        "uumamba.inference.Predictor",
        old="total += self._to_probabilities(net(windows).float())",
        new="total += net(windows).float()",
        test_file="tests/inference/test_predictor.py",
    ),
    # training
    Fault(  # decay inverted
        "uumamba.training.run_state",
        old="get_ema_multi_avg_fn(decay)",
        new="get_ema_multi_avg_fn(1 - decay)",
        test_file="tests/training/test_trainer.py",
    ),
    Fault(  # resume without the random state
        "uumamba.training.run_state",
        old='set_random_state(own["now"], self.device)',
        new="pass",
        test_file="tests/training/test_resume.py",
    ),
    Fault(  # altered file accepted where the format is right
        "uumamba.training.read_checkpoint",
        old='metadata["format"] == FORMAT and metadata',
        new='metadata["format"] == FORMAT or metadata',
        test_file="tests/training/test_checkpoint.py",
    ),
    # evaluation
    Fault(  # myocardial mass from the wrong phase
        "uumamba.evaluation.patient_table",
        old='volumes.get((MYOCARDIUM, "ED"), math.nan)',
        new='volumes.get((MYOCARDIUM, "ES"), math.nan)',
        test_file="tests/evaluation/test_clinical.py",
    ),
    Fault(  # population in place of sample deviation
        "uumamba.evaluation.mean_dice",
        old="np.std(finite, ddof=1)",
        new="np.std(finite, ddof=0)",
        test_file="tests/evaluation/test_spread.py",
    ),
    # config
    Fault(  # weight decay on learned loss weights
        "uumamba.config.optim",
        old='groups.append({"params": own, "weight_decay": 0.0, "perturb": False})',
        new='groups.append({"params": own, "perturb": False})',
        test_file="tests/config/test_learning.py::test_the_loss_weights_are_neither_perturbed_nor_decayed",
    ),
    Fault(  # epochs taken for steps
        "uumamba.config.learning_rate",
        old="min(part.warmup_epochs * batches_per_epoch, total_steps // 2)",
        new="min(part.warmup_epochs, total_steps // 2)",
        test_file="tests/config/test_parts.py",
    ),
    # federated
    Fault(  # an absent client's share is lost
        "uumamba.federated.gossip_matrix",
        old="own = 1 - np.asarray(links.sum(axis=1)).ravel()",
        new="own = np.asarray(matrix.diagonal())",
        test_file="tests/federated/test_gossip_matrix.py",
    ),
    Fault(  # each round gossips with the first matrices of a schedule
        "uumamba.federated.dfedsam",
        old="return round_number * self.gossip_steps",
        new="return 0",
        test_file="tests/federated/test_simulation.py",
    ),
    Fault(  # a client's dropout depends on the clients before it
        "uumamba.federated.local_training",
        old='seed_everything(key_to_seed(method.seed, "local training", client.name, round_number))',
        new="pass",
        test_file="tests/federated/test_simulation.py",
    ),
    Fault(  # weights that are not finite are mixed
        "uumamba.federated.simulation",
        old="        present[failed] = False",
        new="        pass",
        test_file="tests/federated/test_simulation.py",
    ),
    Fault(  # every site trains on all cases
        "uumamba.pipelines.sites.federated_build",
        old="training, _ = job.sites[site]",
        new="training = job.training_ids",
        test_file="tests/pipelines/test_federated_run.py",
    ),
    # unlearning
    Fault(  # one weight for the batch
        "uumamba.unlearning.forget_losses",
        old="F.logsigmoid(self.beta * (losses - past.to(losses))).mean()",
        new="F.logsigmoid(self.beta * (losses - past.to(losses)).mean())",
        test_file="tests/unlearning/test_forget_losses.py",
    ),
    Fault(  # the patient to forget is retained
        "uumamba.pipelines.forgetting.forget_request",
        old="excluded = tuple(sorted({*(config.dataset.exclude_patients or ()), *named}))",
        new="excluded = tuple(sorted({*(config.dataset.exclude_patients or ())}))",
        test_file="tests/pipelines/test_unlearn.py",
    ),
    # pipelines
    Fault(  # averaged over axes that training did not mirror
        "uumamba.pipelines.load_predictor",
        old="mirror_axes=config.augment.mirror_axes if averages else (),",
        new="mirror_axes=range(len(config.training.patch_size)) if averages else (),",
        test_file="tests/pipelines/test_models.py",
    ),
    Fault(  # missing predictions left out without an error
        "uumamba.pipelines.evaluate.evaluate_folder",
        old="cases = [case for case in manifest.cases if case.case_id not in known]",
        new="cases = [case for case in manifest.cases if case.case_id in found]",
        test_file="tests/pipelines/test_evaluate.py",
    ),
    Fault(  # validation cases are also trained on
        "uumamba.config.case_split",
        old="        elif case.domain in train:",
        new="        if case.domain in train:",
        test_file="tests/pipelines/test_split.py",
    ),
    # cli
    Fault(  # exit codes 1 and 3 exchanged
        "uumamba.cli.main",
        old="EXIT_SOME_CASES_FAILED if done else EXIT_FAILED",
        new="EXIT_FAILED if done else EXIT_SOME_CASES_FAILED",
        test_file="tests/test_cli.py",
    ),
    Fault(  # > for >=: the device after the last
        "uumamba.runtime.devices",
        old="if int(known[1] or 0) >= count:",
        new="if int(known[1] or 0) > count:",
        test_file="tests/runtime/test_devices.py",
    ),
    # files, seeding
    Fault(  # renamed before its content is on the disk
        "uumamba.runtime.files.whole_file",
        old="_synchronise(unfinished)",
        new="pass",
        test_file="tests/runtime/test_files.py",
    ),
    Fault(  # (0, 12) and (0, 1, 2) get one seed
        "uumamba.runtime.seeds.key_to_seed",
        old='"/".join(map(str, key))',
        new='"".join(map(str, key))',
        test_file="tests/runtime/test_seeds.py",
    ),
    # data_prep
    Fault(  # folds not stratified
        "data_prep.assign_folds",
        old='(groups[patient], key_to_seed(seed, "fold", patient), patient)',
        new='(key_to_seed(seed, "fold", patient), patient)',
        test_file="tests/data_prep/test_folds.py",
    ),
    Fault(  # left and right ventricle exchanged
        "data_prep.mnms_frames",
        old="{0: 0, 1: 3, 2: 2, 3: 1}",
        new="{0: 0, 1: 1, 2: 2, 3: 3}",
        test_file="tests/data_prep/test_mnms.py",
    ),
)


def source_of(public_name: str) -> Path:
    """Source file of a public name, relative to the checkout.

    Raises:
        ValueError: there is no such name, or it lives elsewhere.
    """
    try:
        found: Any = pkgutil.resolve_name(public_name)
        return Path(str(inspect.getsourcefile(inspect.unwrap(found)))).relative_to(ROOT)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{public_name}: got {error}, expected a source file here. Fix: give its new name.") from None


def problem_of(fault: Fault) -> str | None:
    """Sentence that says why a record cannot be used; None where it can."""
    try:
        source = source_of(fault.public_name)
    except ValueError as error:
        return str(error)
    count = (ROOT / source).read_text(encoding="utf-8").count(fault.old)
    if count != 1:
        return f"{fault.public_name}: got {count} times {fault.old!r} in {source}, expected 1. Fix: correct `old`."
    if not (ROOT / fault.test_file.partition("::")[0]).is_file():
        return f"{fault.public_name}: got the test file {fault.test_file}, expected one here. Fix: correct `test_file`."
    return None


def copy_checkout(target: Path) -> None:
    """Copy what the tests need, compiled extensions included, without bytecode."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for path in filter(Path.is_file, ROOT.glob("[!.]*")):
        shutil.copy2(path, target)
    (target / "uumamba" / "configs").symlink_to(target / "configs")  # as setup.py maps it


def imported_from(copy: Path) -> Path:
    """Folder from which tests in the copy import the package, which an editable install could decide otherwise."""
    command = [sys.executable, "-c", "import uumamba; print(uumamba.__file__)"]
    found = subprocess.run(command, cwd=copy, env=_environment(copy), capture_output=True, encoding="utf-8", check=True)
    return Path(found.stdout.strip()).parents[1]


def _environment(copy: Path) -> dict[str, str]:
    # Without bytecode files: they are told apart by size and whole seconds, which a fault may leave as they are.
    return os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(copy: Path, test_file: str) -> tuple[str, str, float]:
    """Outcome, first failing test and seconds of a test file in the copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--rootdir={copy}", test_file]
    began, output = monotonic(), ""
    with subprocess.Popen(
        command, cwd=copy, env=_environment(copy), stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
    ) as process:
        try:
            output = process.communicate(timeout=LIMIT_S)[0]
            known = {0: "missed", 1: "caught"}
            outcome = known.get(process.returncode, f"pytest exit code {process.returncode}")
        except subprocess.TimeoutExpired:
            outcome = "timed out"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    return outcome, failed[1] if failed else "", monotonic() - began


def run_fault(copy: Path, fault: Fault) -> Outcome:
    """Plant a fault in the copy, run its test file, and take the fault out again."""
    path = copy / source_of(fault.public_name)
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
    try:
        return Outcome(fault, *run_tests(copy, fault.test_file))
    finally:
        path.write_text(sound, encoding="utf-8")


def failing_clean(copy: Path, test_files: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Test files that fail in the copy without any fault."""
    failing = []
    for test_file in test_files:
        outcome, failed_test, seconds = run_tests(copy, test_file)
        say(f"{'passes' if outcome == 'missed' else 'FAILS':9} {seconds:6.1f} s  {test_file}  {failed_test}")
        failing += [] if outcome == "missed" else [test_file]
    return failing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen faults and print a table."""
    parser = argparse.ArgumentParser(description="Plant one-line faults in a copy and see which a test catches.")
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression for name or test file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the outcomes here")
    parser.add_argument("--check-clean", action="store_true", help="first run each test file without a fault")
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    faults = [each for each in FAULTS if re.search(given.only, f"{each.public_name} {each.test_file}")]
    if problems := [problem for each in faults if (problem := problem_of(each))]:
        print("\n".join(problems), file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []
    with TemporaryDirectory(prefix="planted-faults-") as folder:
        copy = Path(folder).resolve()
        copy_checkout(copy)
        if (used := imported_from(copy)) != copy:
            print(
                f"uumamba: got it from {used}, expected {copy}. Fix: unset what precedes PYTHONPATH.", file=sys.stderr
            )
            return 2
        test_files = list(dict.fromkeys(each.test_file for each in faults))
        if given.check_clean and (failing := failing_clean(copy, test_files, lambda line: print(line, flush=True))):
            print(f"test files: got {len(failing)} failing without a fault, expected 0. Fix: mend them first.")
            return 1
        for fault in faults:
            outcomes.append(found := run_fault(copy, fault))
            mark = "" if found.is_expected else "  <- not as the list says"
            print(f"{found.outcome:9} {found.seconds:6.1f} s  {fault.public_name}: {fault.new}{mark}", flush=True)
            print(f"{'':20}{found.failed_test or fault.test_file}", flush=True)
    caught = sum(each.outcome == "caught" for each in outcomes)
    print(f"{caught} of {len(outcomes)} faults caught in {sum(each.seconds for each in outcomes):.0f} s")
    if given.json is not None:
        rows = [asdict(each) | {"is_expected": each.is_expected} for each in outcomes]
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(each.is_expected for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
