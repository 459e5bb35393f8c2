"""What parameter groups may hold: settings in their range, and one value where there can only be one."""

import abc
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from landscope.optimizers.named import parameters_given


class Checking(torch.optim.Optimizer, abc.ABC):
    """An optimizer that refuses a parameter group as it is added, and counts the gradients of its steps.

    The groups hold the count as ``"gradients"``.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with settings of its own; one that is refused leaves the optimizer as it was.

        Raises:
            TypeError: for a setting that is no number.
            ValueError: for settings out of range, or that differ where all groups have to have the same.
        """
        super().add_param_group(parameters_given([param_group])[0])
        try:
            self._check_groups()
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit.

        Raises:
            ValueError: for another optimizer's state, or settings that `add_param_group` would refuse.
        """
        for group in state_dict.get("param_groups", ()):
            missing = sorted(self.defaults.keys() - group.keys())
            if missing:
                raise ValueError(
                    f"this is no state of {self._called()}: its groups lack {', '.join(missing)} and have "
                    f"{', '.join(sorted(group.keys() - {'params', 'param_names'})) or 'nothing'}; load what "
                    "state_dict() of such an optimizer gave"
                )
        super().load_state_dict(state_dict)
        self._check_groups()

    def _called(self) -> str:
        """The optimizer's name."""
        return type(self).__name__

    @property
    def gradients(self) -> int:
        """How many gradients of a batch have been computed for the steps so far."""
        return self.param_groups[0]["gradients"]

    def _counted(self, gradients: int) -> None:
        for group in self.param_groups:
            group["gradients"] += gradients

    @abc.abstractmethod
    def _check_groups(self) -> None:
        """Refuse settings that are out of their range, in any group."""


def check_not_negative(owner: str, groups: Iterable[dict[str, Any]], names: Sequence[str]) -> None:
    """Refuse settings below zero, infinite, or NaN; one that is None or absent is left alone.

    Args:
        owner: The optimizer's name.
        groups: Its parameter groups.
        names: The settings.

    Raises:
        TypeError: for the first one that is no number.
        ValueError: for the first one that is out of range.
    """
    for group in groups:
        for name in names:
            value = group.get(name)
            if value is None:
                continue
            if not isinstance(value, (int, float, torch.Tensor)):
                raise TypeError(f"{owner} needs a number for {name}, not {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{owner} needs {name} >= 0, not {value}" + (": it has to be finite" * (value > 0)))


def check_clip(owner: str, groups: Sequence[dict[str, Any]]) -> None:
    """Refuse a length to clip gradients to that leaves nothing of them, and one that the groups do not share.

    Raises:
        ValueError: where it is 0, or they hold different ones.
    """
    if the_same(owner, groups, "clip") == 0:
        raise ValueError(f"{owner} clips gradients to a length above 0 (None: not at all), not to 0")


def check_members(owner: str, groups: Iterable[dict[str, Any]], model: nn.Module, why: str) -> None:
    """Refuse parameters that are not the model's.

    Raises:
        ValueError: for the first one.
    """
    own = {id(w) for w in model.parameters()}
    for w in (w for group in groups for w in group["params"] if id(w) not in own):
        raise ValueError(
            f"{owner} was given parameters that do not belong to the model ({list(w.shape)} for one), {why}; give "
            "those to an optimizer of their own"
        )


def is_count(value: Any, least: int) -> bool:
    """Whether something is a whole number, and not below the least."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def the_same(owner: str, groups: Sequence[dict[str, Any]], name: str) -> Any:
    """A setting that counts for all parameters together, from the groups that all hold it.

    Raises:
        ValueError: where they hold different ones.
    """
    first = groups[0][name]
    for group in groups[1:]:
        if group[name] != first:
            raise ValueError(
                f"{owner} has one {name} for all its parameters, but the groups have {first!r} and {group[name]!r}: "
                "give it to the optimizer, or change it in every group"
            )
    return first
