"""Dropout put into a network that has none."""

import torch
from torch import nn

from landscope.regularizers.draws import check_real
from landscope.regularizers.noise import ACTIVATIONS
from landscope.spec import Call


def insert_dropout(model: nn.Module, /, *, p: float = 0.5, after: tuple[str, ...] | None = None) -> nn.Module:
    """Puts dropout after modules of a network, in place (Srivastava et al. 2014), and returns the network.

    A module becomes ``nn.Sequential(module, nn.Dropout(p))`` under its own name. Activations hold no parameters, so
    that after them (the default) no parameter's name changes; one of a module named in ``after`` gains a ``.0``.
    In torch's convention p is the share of units set to 0, the rest is multiplied by 1/(1 − p), and eval mode is
    untouched.

    Args:
        model: The network.
        p: The share of units dropped, in [0, 1].
        after: Names of modules; every activation module (ReLU and its like) if None.

    Raises:
        ValueError: for p outside [0, 1].
        TypeError: for settings that are no numbers.
        LookupError: for names that the model does not have, or a model without activation modules.

    >>> insert_dropout(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), p=0.2)[1]
    Sequential(
      (0): ReLU()
      (1): Dropout(p=0.2, inplace=False)
    )
    """
    check_real("insert_dropout", p=p)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout sets a share p in [0, 1] of the units to 0, not {p}")
    modules = dict(model.named_modules(remove_duplicate=False))
    names = list(after) if after is not None else [n for n, m in modules.items() if isinstance(m, ACTIVATIONS)]
    if "" in names:
        raise LookupError(
            "dropout goes after a module inside the model; wrap the model in nn.Sequential for its outputs"
        )
    if not names:
        raise LookupError("the model has no activation modules (ReLU and its like): name the modules in after=…")
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise LookupError(f"the model has no module called {unknown[0]!r}; it has {', '.join(filter(None, modules))}")
    for name in names:
        parent, _, own = name.rpartition(".")
        wrapped = nn.Sequential(modules[name], nn.Dropout(p))
        setattr(model.get_submodule(parent), own, wrapped.train(modules[name].training))
    return model


def with_dropout(
    shape: tuple[int, ...], outputs: int, /, *, model: Call, p: float = 0.5, after: tuple[str, ...] | None = None
) -> nn.Module:
    """A network with dropout put in, for a Recipe: ``model=call(with_dropout, model=call(mlp, widths=(64,)), p=0.5)``.

    Args:
        shape: The shape of one input, without the batch dimension.
        outputs: Classes, or the dimension of a regression target.
        model: Gives the network: called with ``(shape, outputs)``.
        p: As in `insert_dropout`.
        after: As in `insert_dropout`.

    Raises:
        ValueError: for p outside [0, 1].
        TypeError: for settings that are no numbers.
        LookupError: for names that the model does not have.
        TypeError: where ``model`` gives no module.
    """
    made = model(shape, outputs)
    if not isinstance(made, nn.Module):
        raise TypeError(f"{model!r} gave {type(made).__name__}, not a {torch.nn.Module.__name__} to put dropout into")
    return insert_dropout(made, p=p, after=after)
