"""Trainer for any network, with checkpoints that survive a kill."""

from uumamba.runtime.ranks import ALONE, Ranks
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training.budget import Budget
from uumamba.training.checkpoint import Checkpoint, DamagedCheckpointError, read_checkpoint, save_checkpoint
from uumamba.training.prefetcher import Prefetcher
from uumamba.training.progress_plot import draw_progress
from uumamba.training.run_folder import BEST, LAST, PREVIOUS
from uumamba.training.run_log import RunLog
from uumamba.training.schedule import by_budget, constant, cosine, poly
from uumamba.training.supervised_objective import SupervisedObjective
from uumamba.training.trainer import Trainer, TrainingDivergedError

__all__ = [
    "ALONE",
    "BEST",
    "LAST",
    "PREVIOUS",
    "Budget",
    "Checkpoint",
    "DamagedCheckpointError",
    "Prefetcher",
    "Ranks",
    "RunLog",
    "StoppedOnRequest",
    "SupervisedObjective",
    "Trainer",
    "TrainingDivergedError",
    "by_budget",
    "constant",
    "cosine",
    "draw_progress",
    "poly",
    "read_checkpoint",
    "save_checkpoint",
]
