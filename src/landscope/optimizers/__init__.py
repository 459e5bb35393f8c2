"""Optimizers that change where a network ends up, as torch.optim.Optimizer, and PyTorch's own by name.

Their arithmetic is pure functions on tensors, so that many networks can be stepped at once.
"""

from landscope.optimizers.ascents import asam_perturbation, gsam_direction, sam_perturbation
from landscope.optimizers.entropy_sgd import EntropySGD, langevin_step, momentum_step
from landscope.optimizers.least_squares import LeastSquares, least_squares
from landscope.optimizers.named import NAMES, optimizer
from landscope.optimizers.path_sgd import PathSGD, calibration, path_gradient_norm, path_sgd_update
from landscope.optimizers.prox_prop import ProxProp, proximal_direction, proximal_direction_cg
from landscope.optimizers.sam import ASAM, GSAM, SAM

__all__ = [
    "ASAM",
    "GSAM",
    "NAMES",
    "SAM",
    "EntropySGD",
    "LeastSquares",
    "PathSGD",
    "ProxProp",
    "asam_perturbation",
    "calibration",
    "gsam_direction",
    "langevin_step",
    "least_squares",
    "momentum_step",
    "optimizer",
    "path_gradient_norm",
    "path_sgd_update",
    "proximal_direction",
    "proximal_direction_cg",
    "sam_perturbation",
]
