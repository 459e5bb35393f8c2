"""Optimizers around another: they change its gradients, and share its parameter groups and state."""

import abc
from collections.abc import Mapping
from typing import Any

import torch

from landscope.optimizers.checking import Checking
from landscope.optimizers.named import NAMES, optimizer, parameters_given


class Wrapping(Checking, abc.ABC):
    """An optimizer that prepares gradients and lets a base optimizer of PyTorch make the step.

    Both have the same parameter groups and the same state, so that schedulers, `add_param_group` and `state_dict` work
    as with any other optimizer, and a group may have its own settings of either.

    Args:
        params: Parameters, (name, parameter) pairs or groups.
        base: The base optimizer by name (any of `NAMES` but L-BFGS) or as a class of PyTorch's.
        defaults: The settings of the wrapper.
        settings: The settings of the base optimizer.
    """

    base: torch.optim.Optimizer
    defaults: dict[str, Any]

    def __init__(
        self,
        params: Any,
        base: str | type[torch.optim.Optimizer],
        defaults: dict[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        self._check_base(base)
        super().__init__(parameters_given(params), defaults | {"gradients": 0})
        make = base if isinstance(base, type) else lambda groups, **kwargs: optimizer(base, groups, **kwargs)
        first = [dict(group) for group in self.param_groups]
        try:
            made = make(first, **settings)
        except TypeError as error:
            called, given = base if isinstance(base, str) else base.__name__, ", ".join(settings) or "none"
            raise TypeError(
                f"{type(self).__name__} hands settings that are not its own ({given}) to its base optimizer {called}, "
                f"which refuses them: {error}" + "; the adaptive one is ASAM" * ("adaptive" in settings)
            ) from error
        for group, settled in zip(self.param_groups, made.param_groups, strict=True):
            group.update({name: value for name, value in settled.items() if name != "params"})
        self.base = made
        self.defaults = made.defaults | self.defaults
        self._share()
        self._check_groups()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"base": self.base}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own settings of the wrapper, of the base, or of both."""
        if hasattr(self, "base"):
            super().add_param_group(param_group)
        else:  # the first groups lack the base's settings, and are checked once they have them
            torch.optim.Optimizer.add_param_group(self, param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit.

        Raises:
            ValueError: for another optimizer's state, or one of another base.
        """
        super().load_state_dict(state_dict)
        self._share()

    @abc.abstractmethod
    def step(self, closure: Any = None) -> Any:
        """One step."""

    def _called(self) -> str:
        return f"{type(self).__name__} on {type(self.base).__name__}"

    def _check_base(self, base: Any) -> None:
        owner = type(self).__name__
        if not isinstance(base, (str, type)) or (
            isinstance(base, type) and not issubclass(base, torch.optim.Optimizer)
        ):
            raise TypeError(
                f"{owner} makes its base itself: give a name ({', '.join(NAMES[:-1])}) or a class of PyTorch's, and "
                f"its settings to {owner}, not {base if isinstance(base, type) else type(base).__name__}"
            )
        if base is torch.optim.LBFGS or (isinstance(base, str) and base.lower() == "lbfgs"):
            raise ValueError(
                f"L-BFGS calls its closure itself and cannot be a base; take one of {', '.join(NAMES[:-1])}"
            )
        if isinstance(base, type) and issubclass(base, Checking):
            raise ValueError(
                f"{base.__name__} computes gradients of its own and cannot be the base of {owner}; take one of "
                f"{', '.join(NAMES[:-1])}"
            )

    def _share(self) -> None:
        self.base.param_groups = self.param_groups
        self.base.state = self.state
