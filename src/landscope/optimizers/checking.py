"""What parameter groups may hold: settings in their range, and one value where there can only be one."""

import abc
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from landscope.optimizers.named import parameters_given


class Checking(torch.optim.Optimizer, abc.ABC):
    """An optimizer that refuses a parameter group as it is added, and counts the gradients of its steps.

    The groups hold the count as ``"gradients"``.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with settings of its own; one that is refused leaves the optimizer as it was.

        Raises:
            ValueError: for settings out of range, or that differ where all groups have to have the same.
        """
        super().add_param_group(parameters_given([param_group])[0])
        try:
            self._check_groups()
        except ValueError:
            self.param_groups.pop()
            raise

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
    """Refuse settings below zero, or NaN; one that is None or absent is left alone.

    Args:
        owner: The optimizer's name.
        groups: Its parameter groups.
        names: The settings.

    Raises:
        ValueError: for the first one that is.
    """
    for group in groups:
        for name in names:
            value = group.get(name)
            if value is not None and not value >= 0:
                raise ValueError(f"{owner} needs {name} >= 0, not {value}")


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
