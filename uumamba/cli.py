"""Commands of uumamba.

Heavy imports are inside the commands, so that ``--help`` is quick.
"""

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from uumamba import __version__
from uumamba.runtime.devices import resolve_device, resolve_devices
from uumamba.runtime.errors import (
    EXIT_FAILED,
    EXIT_SOME_CASES_FAILED,
    CaseError,
    EndedWithAnother,
    UumambaError,
    quote,
    require,
)
from uumamba.runtime.option_values import parse_seeds, parse_spacing, repeat_option
from uumamba.runtime.terminal import lossy_output

if TYPE_CHECKING:
    from uumamba.runtime.ranks import Ranks


REPORTER_FIRST_S = 2.0
"""Seconds that a process waits to end after another one's error: torchrun ends all others with the first one that ends,
so the reason would not be printed."""


class StoppedByKeyboard(UumambaError):
    """Interruption by Ctrl-C, with the shell's exit code for SIGINT."""

    exit_code = 130


class Commands(TyperGroup):
    """Group of commands that reports an interruption by the keyboard.

    Typer catches a KeyboardInterrupt before ``main`` and would end without a message.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            StoppedByKeyboard: in place of KeyboardInterrupt.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise StoppedByKeyboard(
                "Stopped by the keyboard; finished work is kept. Run the same command to continue (train: --resume)."
            ) from None


class CommandOfInputs(TyperCommand):
    """Command of which one option takes several values."""

    repeated = "--input"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments with the option before each of its values."""
        options = [option for option in self.params if option.param_type_name == "option"]
        valued = [name for option in options if not getattr(option, "is_flag", False) for name in option.opts]
        return super().parse_args(ctx, repeat_option(args, self.repeated, valued=valued))


class CommandOfPatients(CommandOfInputs):
    """Command whose ``--patients`` takes several values."""

    repeated = "--patients"


app = typer.Typer(
    name="uumamba",
    cls=Commands,
    help="U-Mamba segmentation of hearts and vessels: prepare, train, predict, evaluate, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped name: acdc_cpu.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: optim.rho=0.1. Repeatable.")
]
FoldOption = Annotated[str, typer.Option(metavar="0-4|all|cv", help="One fold, all cases, or every fold.")]
SeedsOption = Annotated[
    str | None, typer.Option(metavar="0,1,2", help="Train once with each seed; default: the config's seed.")
]
DevicesOption = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, auto; several train folds in parallel: cuda:0,cuda:1.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto (CUDA if available).")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Worker processes for preparing; 0 uses none.")]
SplitOption = Annotated[Literal["training", "test"] | None, typer.Option(help="Only this split's cases of a manifest.")]
DomainOption = Annotated[
    list[str] | None, typer.Option(help="Only this domain's (vendor's) cases of a manifest. Repeatable.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Resume although the configuration changed.")]


def _count(found: Sequence[object], noun: str) -> str:
    return f"{len(found)} {noun}" if len(found) == 1 else f"{len(found)} {noun}s"


def _show_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"uumamba {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error; before or after a command.")
    ] = False,
) -> None:
    """U-Mamba segmentation of hearts and vessels."""


@app.command(epilog="Example: uumamba run acdc_cpu --raw ACDC/database --out runs/acdc")
def run(
    config: ConfigArgument,
    raw: Annotated[
        Path,
        typer.Option(help="The data set as its owner ships it, or a folder of your own scans (folder_2d, folder_3d)."),
    ],
    out: Annotated[Path, typer.Option(help="Output folder.")],
    fold: FoldOption = "0",
    seeds: SeedsOption = None,
    overrides: SetOption = None,
    workers: WorkersOption = 2,
    device: DevicesOption = "auto",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Continue without cases that cannot be prepared.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Prepare, train, predict, evaluate and report.

    The same command continues after an interruption. The scores are those of the final weights, not of
    best.safetensors, since that was chosen on the scored cases.
    """
    from uumamba.config import read_config
    from uumamba.pipelines.run import run as run_all
    from uumamba.runtime.allocator import reuse_freed_memory

    reuse_freed_memory()
    with _join_ranks(device) as (ranks, own_device):
        result = run_all(
            read_config(config, overrides or ()),
            raw=raw,
            out=out,
            fold=fold,
            seeds=parse_seeds(seeds),
            workers=workers,
            device=own_device,
            allow_missing=allow_missing,
            force=force,
            ranks=ranks,
            say=_say,
        )
    _show_scores(result)
    _report_failures(result.failures, done=1)


@app.command(epilog="Example: uumamba prepare acdc_cpu --raw ACDC/database --out prepared")
def prepare(
    config: ConfigArgument,
    raw: Annotated[
        Path,
        typer.Option(help="The data set as its owner ships it, or a folder of your own scans (folder_2d, folder_3d)."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the prepared cases.")],
    overrides: SetOption = None,
    workers: WorkersOption = 2,
) -> None:
    """Crop, resample, normalise and store every training case.

    The same command continues after an interruption. The labelled frames of cines, as in M&Ms, are first cut out into
    OUT/frames.
    """
    from uumamba.config import read_config
    from uumamba.pipelines.prepare import prepare_dataset

    result = prepare_dataset(read_config(config, overrides or ()), raw=raw, out=out, workers=workers)
    _say(f"{len(result.prepared)} cases prepared, {len(result.reused)} reused, in {out}")
    _report_failures(result.failures, done=len(result.prepared) + len(result.reused))


@app.command(
    epilog="Example: uumamba train acdc_cpu --data prepared --out runs/acdc --fold cv --resume\n\n"
    "One fold per device: uumamba train acdc_2d --data prepared --out runs/acdc --fold cv --device cuda:0,cuda:1\n\n"
    "In a stated time: uumamba train acdc_2d --data prepared --out runs/lent --resume --set 'schedule={name: budget, "
    "minutes: 25}'\n\n"
    "In two processes: torchrun --nproc-per-node 2 -m uumamba train acdc_3d --data prepared --out runs/acdc --resume"
)
def train(
    config: ConfigArgument,
    data: Annotated[Path, typer.Option(help="A prepared folder.")],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    overrides: SetOption = None,
    fold: FoldOption = "0",
    seeds: SeedsOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    init: Annotated[str | None, typer.Option(metavar="RUN|MODEL|CHECKPOINT", help="Start from these weights.")] = None,
    device: DevicesOption = "auto",
    force: ForceOption = False,
) -> None:
    """Train one fold, all cases, or every fold.

    Several devices train folds in parallel.
    """
    from uumamba.config import read_config
    from uumamba.pipelines.run_layout import print_run_summary
    from uumamba.pipelines.train import train as train_folds
    from uumamba.runtime.allocator import reuse_freed_memory

    reuse_freed_memory()
    with _join_ranks(device) as (ranks, own_device):
        folders = train_folds(
            read_config(config, overrides or ()),
            data=data,
            out=out,
            fold=fold,
            seeds=parse_seeds(seeds),
            resume=resume,
            init=init,
            device=own_device,
            force=force,
            ranks=ranks,
        )
        if ranks.is_rank_zero:
            print_run_summary(out)
            _say("trained " + ", ".join(map(str, folders)))


@app.command(
    cls=CommandOfInputs,
    epilog="Example: uumamba predict acdc --input scan.nii.gz --out predictions\n\n"
    "Your own model: uumamba predict runs/acdc --input scan.nii.gz other/ --out predictions\n\n"
    "A DICOM study: uumamba predict acdc --input study.zip --series 'short axis' --out predictions",
)
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A shipped name: acdc; an output folder of run or train, a fold folder or a checkpoint.",
        ),
    ],
    inputs: Annotated[
        list[Path],
        typer.Option(
            "--input",
            metavar="PATH...",
            help="NIfTI, MHA, NRRD or PNG files, folders of these, DICOM studies, zip files, or manifests. Repeatable. "
            "With one channel a 4-D file is a cine; several channels are files CASE_0000, CASE_0001, ... or 4-D files.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for all results, or one label map: mask.nii.gz, .mha, .nrrd.")],
    device: DeviceOption = "auto",
    fold: Annotated[str | None, typer.Option(help="Fold of the model; default: the average of all.")] = None,
    split: SplitOption = None,
    case_fold: Annotated[int | None, typer.Option(help="Fold of the cases of a manifest; default: all.")] = None,
    domain: DomainOption = None,
    series: Annotated[
        list[str] | None,
        typer.Option(help="Series of a DICOM study: UID or its end, number, or part of the description. Repeatable."),
    ] = None,
    mirror: Annotated[bool | None, typer.Option("--mirror/--no-mirror", help="Average over mirrored inputs.")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write probabilities/CASE_ID.nii.gz.")
    ] = False,
    memory_limit: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Memory of the process on the CPU; default: 4 where the scan allows it."),
    ] = None,
    assume_spacing: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Spacing in mm of scans whose header has no valid one.")
    ] = None,
    label_format: Annotated[
        Literal["nii.gz", "mha", "nrrd", "seg.nrrd"] | None,
        typer.Option(
            "--format", help="Label maps; default: nii.gz (png of a PNG); seg.nrrd is 3D Slicer's, not for cines."
        ),
    ] = None,
    preview: Annotated[bool, typer.Option("--preview/--no-preview", help="Write OUT/previews/CASE.png.")] = True,
    report: Annotated[Path | None, typer.Option(help="HTML page of all cases in OUT.")] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Skip cases finished with the same model, input and options.")
    ] = False,
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Every N-th case from the K-th, such as $ID/10 of a job array.")
    ] = None,
) -> None:
    """Segment scans; a label map has the grid of its scan.

    A folder also gets labels.txt and labels.ctbl, the names and colours for ITK-SNAP and 3D Slicer, and a preview and
    record of each case. After an interruption, the same command with --skip-existing goes on.

    --fold chooses the fold of the model, --case-fold the fold of the cases. The model of a fold folder is
    last.safetensors, the final weights. To use best.safetensors, which was chosen on the validation cases, pass that
    file as MODEL.
    """
    from uumamba.pipelines.models import find_card
    from uumamba.pipelines.predict import predict as predict_all
    from uumamba.pipelines.prediction.parts import Part
    from uumamba.pipelines.prediction.volume_tables import describe_volumes
    from uumamba.runtime.allocator import reuse_freed_memory

    reuse_freed_memory()
    result = predict_all(
        model,
        inputs,
        out=out,
        device=resolve_device(device),
        fold=fold,
        split=split,
        case_fold=case_fold,
        domains=domain,
        series=series or (),
        mirror=mirror,
        save_probabilities=probabilities,
        memory_limit_gb=memory_limit,
        assume_spacing_mm=parse_spacing(assume_spacing),
        label_format=label_format,
        preview=preview,
        report=report,
        skip_existing=skip_existing,
        part=None if part is None else Part.parse(part),
    )
    _say(f"{_count(result.written, 'label map')} in {out}")
    if skip_existing:
        _say(f"{_count(result.skipped, 'case')} finished before")
    for reason, ids in result.renewed.items():
        _say(f"{_count(ids, 'case')} predicted again, because {reason}: {', '.join(ids[:5])}{', ...' * (len(ids) > 5)}")
    for line in describe_volumes(result.records):
        _say(line)
    if report is not None:
        _say(f"report: {report}")
    if (result.written or result.skipped) and (card := find_card(model)) is not None:
        _say(f"model {model}: figures, limits and licence are in {card}")
    _report_failures(result.failures, done=len(result.written) + len(result.skipped))


@app.command(
    cls=CommandOfPatients,
    epilog="Example: uumamba unlearn runs/acdc --patients patient001 patient017 --out runs/acdc_without\n\n"
    "With a model trained without them: uumamba unlearn runs/acdc --data prepared --patients patient001 "
    "--retrained runs/acdc_rest --out runs/acdc_without",
)
def unlearn(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of run or train, or a fold folder.")],
    patients: Annotated[
        list[str], typer.Option(metavar="ID...", help="Patients to forget, as in the manifest. Repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder of the result, with unlearning.html and unlearning.json.")],
    data: Annotated[
        Path | None, typer.Option(help="The prepared cases of the run; default: the folder prepared next to it.")
    ] = None,
    fold: Annotated[str | None, typer.Option(help="Fold of a run with several.")] = None,
    retrained: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run trained without the patients; default: train one.")
    ] = None,
    method: Annotated[
        Literal["NPO", "GradientDifference"], typer.Option(help="Forget loss: bounded (NPO) or plain ascent.")
    ] = "NPO",
    smoothing: Annotated[
        Literal["SAM", "RS", "GP", "CR", "none"], typer.Option(help="Smoothing against relearning.")
    ] = "SAM",
    device: DeviceOption = "auto",
) -> None:
    """Remove patients from a trained model, with a page of evidence.

    The page compares the result with a model trained again without the patients: recognition by the loss, Dice,
    distance, and a relearning attack. That training takes as long as the first one.
    """
    from uumamba.pipelines.forgetting.forgetting_run import ForgettingOptions
    from uumamba.pipelines.unlearn import unlearn_patients
    from uumamba.runtime.allocator import reuse_freed_memory

    reuse_freed_memory()
    page = unlearn_patients(
        run,
        patients=patients,
        out=out,
        data=data,
        fold=fold,
        retrained=retrained,
        options=ForgettingOptions(method=method, smoothing=smoothing),
        device=resolve_device(device),
    )
    _say(f"model: {out}; evidence: {page}")


@app.command(epilog="Example: uumamba models")
def models() -> None:
    """List the shipped models, with structures, licence and card."""
    from uumamba.pipelines.models import list_shipped

    for model in list_shipped():
        typer.echo("\n".join(f"{key}: {value}" for key, value in model.items()) + "\n")


@app.command(epilog="Example: uumamba evaluate --predictions predictions --labels prepared/dataset.json --out scores")
def evaluate(
    predictions: Annotated[Path, typer.Option(help="A folder of <case_id>.nii.gz, or a manifest.")],
    labels: Annotated[Path, typer.Option(help="A folder of <case_id>.nii.gz, a manifest, or a public data set.")],
    out: Annotated[Path, typer.Option(help="Folder for scores.csv, summary.json and other tables.")],
    fold: Annotated[int | None, typer.Option(help="Fold of the cases of a manifest; default: all.")] = None,
    split: SplitOption = None,
    domain: DomainOption = None,
    vessels: Annotated[
        list[str] | None, typer.Option(metavar="NAME|all", help="Also clDice, Betti and length errors. Repeatable.")
    ] = None,
) -> None:
    """Score label maps by Dice, distances, volumes and clinical measures.

    --fold chooses the fold of the cases, as --case-fold of predict. A missing prediction is an error. Vessels (those
    of ImageCAS and AortaSeg24, or selected by --vessels) also get clDice, Betti and length errors.
    """
    from uumamba.pipelines.evaluate import evaluate_folder, print_summary

    scores = evaluate_folder(predictions, labels, out, fold=fold, split=split, domains=domain, vessels=vessels)
    print_summary(scores)
    _report_failures(scores.failures, done=len(scores.rows))


@app.command(epilog="Example: uumamba report runs/acdc --out report.html")
def report(
    run_or_scores: Annotated[
        Path, typer.Argument(metavar="RUN_OR_SCORES", help="Output folder of run or evaluate, or a scores.csv.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file.")],
) -> None:
    """Write one offline HTML file with tables, curves and overlays."""
    from uumamba.pipelines.report import report as write_report

    write_report(run_or_scores, out)
    _say(f"report: {out}")


@app.command(epilog="Example: uumamba demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/demo"),
    config: Annotated[str, typer.Option(help="The run's configuration.")] = "demo",
    overrides: SetOption = None,
    workers: WorkersOption = 2,
) -> None:
    """Run all stages on a phantom, in minutes on two cores.

    OUT gets the page report.html and the picture overlay.png.
    """
    from uumamba.config import read_config
    from uumamba.pipelines.demo import PICTURE_NAME
    from uumamba.pipelines.demo import demo as run_demo

    result = run_demo(read_config(config, overrides or ()), out=out, workers=workers, say=_say)
    _show_scores(result)
    typer.echo(f"picture: {out / PICTURE_NAME}")
    typer.echo(
        "next: open both; then segment a scan (uumamba predict acdc --input SCAN --out predictions), or train on scans "
        "of your own (uumamba run folder_2d --raw SCANS --out runs/mine)"
    )


@app.command(epilog="Example: uumamba doctor --folder prepared\n\nFor a report of a fault: uumamba doctor --json")
def doctor(
    folder: Annotated[Path, typer.Option(help="Folder for prepared cases; its disk is measured.")] = (Path()),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without paths and names.")] = False,
) -> None:
    """Show the machine, its scan backends, and the limit of training."""
    from uumamba.doctor.examine import examine

    examine(folder, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end with an exit code.

    An error that the user can fix is shown in one or two lines, without a traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with lossy_output():
        code = _run(given)
    if "uumamba.runtime.rank_group" in sys.modules:
        from uumamba.runtime.process_end import end_process
        from uumamba.runtime.ranks import Place

        if Place.from_environment().count > 1:
            end_process(code)
    raise SystemExit(code)


def _run(given: Sequence[str]) -> int:
    """Run a command; report its error and return the exit code."""
    warnings.showwarning = _show_warning
    try:
        app([argument for argument in given if argument != "--debug"])  # accepted before and after the command
        return 0
    except UumambaError as error:
        if "--debug" in given:
            raise
        if isinstance(error, EndedWithAnother):  # the other process reports the reason
            time.sleep(REPORTER_FIRST_S)
        else:
            typer.echo(f"uumamba: {error}", err=True)
        return error.exit_code
    except Exception as error:
        if "--debug" in given:
            raise
        typer.echo(
            f"uumamba: {type(error).__name__}: {quote(error)}, an error that uumamba does not know. "
            "Fix: run the same command with --debug and report the traceback.",
            err=True,
        )
        return EXIT_FAILED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    typer.echo(f"uumamba: warning: {message}", err=True)


def _show_scores(result: Any) -> None:
    from uumamba.pipelines.evaluate import print_summary

    if result.scores is not None:
        print_summary(result.scores)
    if result.report is not None:
        typer.echo(f"report: {result.report}")


@contextmanager
def _join_ranks(names: str) -> Iterator[tuple["Ranks", str]]:
    """Join the processes that torchrun started; yield ranks and device.

    Without torchrun this is the only process.
    """
    from uumamba.runtime.ranks import Place

    place, device = Place.from_environment(), resolve_devices(names)
    from uumamba.runtime.rank_group import join_group  # after the environment was read, since ``main`` checks for it

    if place.count > 1:
        import torch

        require("," not in device, "--device", got=names, expected="cuda or cpu, one device per process of torchrun")
        device = place.device(device, found=torch.cuda.device_count())
    with join_group(device.partition(",")[0], place) as ranks:
        yield ranks, device


def _report_failures(failures: Sequence[CaseError], *, done: int) -> None:
    for failure in failures:
        typer.echo(f"uumamba: failed: {failure}", err=True)
    if failures:
        raise typer.Exit(EXIT_SOME_CASES_FAILED if done else EXIT_FAILED)
