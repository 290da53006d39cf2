"""Decentralized trainer of one fold, built from a run's configuration."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uumamba.config.federated import build_federated, build_lr_factor
from uumamba.config.objectives import build_objective
from uumamba.config.optim import build_ascent, build_optimizer, needs_logits
from uumamba.config.training import resolve_precision
from uumamba.data.loader import batches
from uumamba.data.prepared import PreparedFolder
from uumamba.federated import Client, Simulation
from uumamba.pipelines.build import (
    WholeCaseValidation,
    build_augmentation,
    build_dataset,
    build_loss,
    build_run_folder,
    build_start,
)
from uumamba.pipelines.jobs import Job, replace_seed
from uumamba.pipelines.sites.site_validation import SiteValidation
from uumamba.runtime.autocast import autocast
from uumamba.runtime.network import batch_to_device
from uumamba.runtime.observer import Observer
from uumamba.runtime.seeds import key_to_seed
from uumamba.training.federated_trainer import FederatedTrainer
from uumamba.types import Batch


def build_federated_trainer(
    job: Job,
    folder: PreparedFolder,
    *,
    run_dir: Path | None,
    init: str | None = None,
    device: str = "cpu",
    observers: Sequence[Observer] | None = None,
) -> FederatedTrainer:
    """Build every object of a fold's decentralized training once.

    Args:
        job: configuration, cases, sides and sites.
        folder: the prepared cases.
        run_dir: the fold folder; None stores nothing.
        init: a model whose weights every site starts from.
        device: torch's name of the training device.
        observers: display, plot and others; None for those of the trainer.
    """
    config, labels = job.config, folder.manifest.labels
    assert config.federated is not None  # the caller's condition
    net = build_start(config, folder, init=init, device=device)
    loss = build_loss(config, labels)
    outputs = needs_logits(config.optim)
    objective = build_objective(config.objective, loss, net, outputs=outputs, labels=labels).to(device)
    precision = resolve_precision(config.training.precision, device)

    def compute_loss(module: nn.ModuleDict, batch: Batch) -> Any:
        with autocast(torch.device(device), precision):
            return module["objective"](module["net"], batch)

    local_steps = config.federated.local_steps
    method = build_federated(
        config.federated,
        [len(training) for training, _ in job.sites.values()],
        objective=compute_loss,
        # The optimizer takes groups of weights, so it reads them from the modules that they belong to.
        optimizer=lambda params: build_optimizer(config.optim, net, objective, labels=labels),
        lr_factor=build_lr_factor(config.schedule, training=config.training, local_steps=local_steps),
        ascent=build_ascent(config.optim, labels),
        seed=config.seed,
    )
    clients = [_build_client(job, folder, site, device=device) for site in job.sites]
    validation = WholeCaseValidation(config, folder, job.validation_ids, device=device) if job.validation_ids else None
    return FederatedTrainer(
        Simulation(nn.ModuleDict({"net": net, "objective": objective}), clients, method),
        epochs=config.training.epochs,
        rounds_per_epoch=config.training.batches_per_epoch // local_steps,
        validate=None
        if validation is None
        else SiteValidation(
            validation,
            {site: held for site, (_, held) in job.sites.items()},
            entering=partial(autocast, torch.device(device), precision),
        ),
        validate_every=config.training.validate_every,
        folder=None if run_dir is None else build_run_folder(job, folder, run_dir),
        observers=observers,
    )


def _build_client(job: Job, folder: PreparedFolder, site: str, *, device: str) -> Client:
    """Build a site with patches of its own training cases."""
    training, _ = job.sites[site]
    seed = key_to_seed(job.config.seed, "site", site)
    dataset = build_dataset(replace_seed(job.config, seed), folder, training)
    augment = build_augmentation(job, folder)
    return Client(site, partial(_load_batches, dataset, augment, device), size=len(training))


def _load_batches(dataset: Any, augment: Callable[[Batch], Batch], device: str, round_number: int) -> Iterator[Batch]:
    for batch in batches(dataset, round_number):
        yield augment(batch_to_device(batch, device))
