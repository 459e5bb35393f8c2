"""Training one network: `begin` a run, then iterate over `advance`, which yields after every optimizer step."""

from landscope.train.beginning import States, Training, begin, constrain, draws, regularizers, takes_outputs
from landscope.train.checkpoints import checkpoint, restore, state_of
from landscope.train.loop import CHECK_DIVERGENCE, advance, diverge, evaluate, loss_below

__all__ = [
    "CHECK_DIVERGENCE",
    "States",
    "Training",
    "advance",
    "begin",
    "checkpoint",
    "constrain",
    "diverge",
    "draws",
    "evaluate",
    "loss_below",
    "regularizers",
    "restore",
    "state_of",
    "takes_outputs",
]
