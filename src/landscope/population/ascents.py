"""Two gradients a step for stacked networks: where SAM, ASAM and GSAM look, and which way they go from there."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from landscope.optimizers.ascents import asam_perturbation, gsam_direction, sam_perturbation
from landscope.population.layout import Layout

SAM, ASAM, GSAM = (f"landscope.optimizers.{name}" for name in ("SAM", "ASAM", "GSAM"))
ASCENTS = (SAM, ASAM, GSAM)


def perturbed(rows: Tensor, gradients: Tensor, settings: Mapping[str, Any], layout: Layout) -> Tensor:
    """The rows at the worst point nearby, as `optimizers.sam` finds it for one network.

    Args:
        rows: All parameters, ``[members, width]``.
        gradients: The gradients there.
        settings: The optimizer's at this step; one with a ``scope`` looks in ASAM's ball.
        layout: Which numbers of a row are of matrices.
    """
    rho = _like(_radius(settings), rows)
    rho = -rho if settings.get("maximize") else rho
    scope = settings.get("scope")
    if scope is None:
        return rows + sam_perturbation(gradients, rho=rho)
    scaled = None if scope == "all" else _matrices(layout, rows.device)
    return rows + asam_perturbation(gradients, rows, scaled, rho=rho, eta=_like(settings["eta"], rows))


def direction(first: Tensor, second: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Which way to go, from the gradients at the weights and at the worst point nearby."""
    return gsam_direction(first, second, alpha=_like(settings["alpha"], first)) if "alpha" in settings else second


def _like(value: Any, rows: Tensor) -> Tensor:
    return torch.as_tensor(value).to(rows)


def _radius(settings: Mapping[str, Any]) -> Any:
    """The radius at this step's learning rate (`GSAM`); NaN, which ends the run, for a rate with no range to lie in."""
    if "rho_min" not in settings:
        return settings["rho"]
    named = ("rho", "rho_min", "lr", "lr_max", "lr_min")
    rho, least, lr, high, low = (torch.as_tensor(settings[name], dtype=torch.float64) for name in named)
    share = torch.where(high > low, (lr - low) / (high - low), torch.nan)
    return torch.where(lr == high, rho, least + (rho - least) * share)


def _matrices(layout: Layout, device: torch.device) -> Tensor:
    """Which numbers of a row are of parameters of two axes or more."""
    found = torch.zeros(layout.width, dtype=torch.bool)
    for shape, offset in zip(layout.shapes, layout.offsets, strict=True):
        if len(shape) > 1:
            found[offset : offset + torch.Size(shape).numel()] = True
    return found.to(device)
