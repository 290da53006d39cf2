"""Unlearning of patients of a trained model, with evidence against retraining."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from uumamba.config.load import validate
from uumamba.evaluation.unlearning_page import render_unlearning_page
from uumamba.pipelines.build import build_run_folder
from uumamba.pipelines.forgetting.case_measures import CaseMeasures
from uumamba.pipelines.forgetting.forget_request import ForgetRequest, read_request, same_but_for_patients
from uumamba.pipelines.forgetting.forgetting_evidence import (
    AFTER,
    BEFORE,
    RETRAINED,
    UNSMOOTHED,
    AttackOptions,
    Evidence,
)
from uumamba.pipelines.forgetting.forgetting_run import ForgettingOptions, Look, describe, forget_patients
from uumamba.pipelines.models import checkpoint_paths
from uumamba.pipelines.train import train
from uumamba.runtime.errors import require
from uumamba.runtime.files import make_folder, write_json, write_text
from uumamba.runtime.observer import to_stderr
from uumamba.runtime.seeds import generator_for
from uumamba.training.checkpoint import Checkpoint, read_checkpoint
from uumamba.training.run_folder import replace_infinite

PAGE_NAME, EVIDENCE_NAME, RETRAINED_NAME = "unlearning.html", "unlearning.json", "retrained"


def unlearn_patients(
    run: Path | str,
    *,
    patients: Sequence[str],
    out: Path | str,
    data: Path | str | None = None,
    fold: str | None = None,
    retrained: Path | str | None = None,
    options: ForgettingOptions | None = None,
    attack: AttackOptions | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> Path:
    """Remove patients from a trained model, and measure the result.

    The result is a run folder that predicts like any other, ``unlearning.json`` and the page ``unlearning.html``, which
    compares it with the model before, the same without smoothing, and a model trained again without the patients. That
    training takes as long as the first; it is stored in ``out/retrained`` and continued by the same command.

    Args:
        run: output folder of ``uumamba run``, run folder or fold folder with validation cases.
        patients: patients to forget, as in the manifest.
        out: run folder of the result.
        data: the prepared cases; None takes the folder ``prepared`` next to the run.
        fold: fold of a run with several.
        retrained: a run trained without the patients; None trains one.
        options: unlearning; None for the defaults.
        attack: relearning attack; None for the defaults.
        device: name of the device in torch.
        progress: a bar for the training; None shows one on a terminal.

    Returns:
        The page.

    Raises:
        UsageError: as from :func:`uumamba.pipelines.forgetting.forget_request.read_request`, or ``retrained`` is a run
            of another configuration or with one of the patients.
    """
    out, options = Path(out), options or ForgettingOptions()
    request = read_request(run, patients=patients, data=data, out=out, fold=fold, device=device)
    again = _find_retrained(request, retrained, out, device=device, progress=progress)
    measures = CaseMeasures(request, device=device)
    reference, measured = split_unseen(request)

    def unlearn(chosen: ForgettingOptions) -> tuple[nn.Module, list[Look]]:
        to_stderr(f"unlearn: {chosen.method}, smoothing {chosen.smoothing}")
        return forget_patients(
            request, chosen, measures, unseen_ids=reference, device=device, on_look=lambda look: to_stderr(_say(look))
        )

    net, looks = unlearn(options)
    unsmoothed = net if options.smoothing == "none" else unlearn(replace(options, smoothing="none"))[0]
    evidence = Evidence(request, measures, unseen_ids=measured, attack=attack or AttackOptions(), device=device)
    nets = {BEFORE: request.load_net().to(device), AFTER: net, UNSMOOTHED: unsmoothed, RETRAINED: again}
    found = evidence.collect(nets, on_model=lambda name: to_stderr(f"unlearn: measuring the model {name}"))
    found["run"] = describe(options, looks)
    target = request.job.folder.path
    make_folder(target)
    write_json(out / EVIDENCE_NAME, replace_infinite(found))
    write_text(out / PAGE_NAME, render_unlearning_page(found, model=Path(run).name))
    _write_model(request, net, target)  # last, so that the same command works after an interruption
    return out / PAGE_NAME


def split_unseen(request: ForgetRequest) -> tuple[list[str], list[str]]:
    """Split the unseen patients into halves, for the reference and for evidence."""
    patients = sorted({request.patient_of(case_id) for case_id in request.unseen_ids})
    order = torch.randperm(len(patients), generator=generator_for(request.job.config.seed, "unseen patients")).tolist()
    chosen = {patients[index] for index in order[: len(patients) // 2]}
    halves: tuple[list[str], list[str]] = ([], [])
    for case_id in request.unseen_ids:
        halves[request.patient_of(case_id) not in chosen].append(case_id)
    return halves


def _find_retrained(
    request: ForgetRequest, retrained: Path | str | None, out: Path, *, device: str, progress: bool | None
) -> nn.Module:
    """Load the model trained without the patients, or train it."""
    config, fold = request.job.config, request.job.folder.fold
    if retrained is None:
        to_stderr("unlearn: training again without the patients, to compare with")
        [folder] = train(
            config,
            data=request.folder.path,
            out=out / RETRAINED_NAME,
            fold=fold,
            resume=True,
            device=device,
            progress=progress,
        )
        return request.load_net(checkpoint_paths(folder)[0]).to(device)
    [path, *others] = checkpoint_paths(retrained, key="--retrained")
    stored = read_checkpoint(path).config
    other = validate(stored["run"], source=str(path))
    excluded = {*(other.dataset.exclude_patients or ())}
    require(
        not others and same_but_for_patients(config, other) and stored["fold"] == fold,
        "--retrained",
        got=f"{retrained}, of another configuration or fold",
        expected="a run of the same configuration and fold",
        fix="leave --retrained out, and it is trained",
    )
    missing = sorted({*(config.dataset.exclude_patients or ())} - excluded)
    require(
        not missing,
        "--retrained",
        got=f"{retrained}, which was trained with {', '.join(missing[:3])}",
        expected="a run trained without the patients to forget",
        fix="leave --retrained out, or set dataset.exclude_patients in its training",
    )
    return request.load_net(path).to(device)


def _write_model(request: ForgetRequest, net: nn.Module, target: Path) -> None:
    folder, before = build_run_folder(request.job, request.folder, target), request.checkpoint
    checkpoint = Checkpoint(
        net=net.cpu().state_dict(),
        ema=None,
        objective=before.objective,
        optimizer={},
        scheduler=None,
        random=before.random,
        progress=before.progress,
        config=folder.config,
    )
    with folder.locked():
        folder.begin(epochs=0)
        folder.save(checkpoint)


def _say(look: Look) -> str:
    losses = f"loss of the patients {look.forget_loss:.4f}  of unseen ones {look.unseen_loss:.4f}"
    return f"step {look.step}  {losses}  recognised {len(look.recognised)}"
