"""Trainer for any network, with checkpoints that survive a kill."""

from uumamba.runtime.observer import Observer, RunView
from uumamba.runtime.ranks import ALONE, Ranks
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training.budget import Budget
from uumamba.training.checkpoint import Checkpoint, DamagedCheckpointError, read_checkpoint, save_checkpoint
from uumamba.training.display import make_display, standard_observers
from uumamba.training.federated_trainer import FederatedTrainer
from uumamba.training.prefetcher import Prefetcher
from uumamba.training.progress_plot import ProgressPlot, draw_progress
from uumamba.training.run_folder import BEST, LAST, PREVIOUS, RunFolder, RunLog
from uumamba.training.run_state import MovingAverage
from uumamba.training.schedule import by_budget, constant, cosine, poly
from uumamba.training.supervised_objective import SupervisedObjective
from uumamba.training.trainer import Trainer, TrainingDivergedError
from uumamba.training.trainer_options import Execution, StepOptions, Validation

__all__ = [
    "ALONE",
    "BEST",
    "LAST",
    "PREVIOUS",
    "Budget",
    "Checkpoint",
    "DamagedCheckpointError",
    "Execution",
    "FederatedTrainer",
    "MovingAverage",
    "Observer",
    "Prefetcher",
    "ProgressPlot",
    "Ranks",
    "RunFolder",
    "RunLog",
    "RunView",
    "StepOptions",
    "StoppedOnRequest",
    "SupervisedObjective",
    "Trainer",
    "TrainingDivergedError",
    "Validation",
    "by_budget",
    "constant",
    "cosine",
    "draw_progress",
    "make_display",
    "poly",
    "read_checkpoint",
    "save_checkpoint",
    "standard_observers",
]


def __dir__() -> list[str]:
    return __all__
