"""Wrong settings of regularizers, optimizers and measuring are refused in words that say what to give instead."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import landscope
from landscope.optimizers import ASAM, GSAM, SAM, PathSGD
from landscope.regularizers import flatness, input_noise, poison, reverse_cross_entropy
from landscope.regularizers.draws import Draws, check_layers

X, Y = torch.ones(4, 3), torch.tensor([0, 1, 2, 1])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))


def path_step(**settings: Any) -> None:
    net = network()
    net(X).sum().backward()
    PathSGD(net, lr=0.1, **settings).step()


def watch(**settings: Any) -> None:
    landscope.monitor(network(), nn.CrossEntropyLoss(), train=(X, Y), measures="performance", **settings)


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one layer's name": (
        lambda: check_layers("flatness", "0"),
        TypeError,
        r"flatness .* layers=\('0',\), not layers='0'",
    ),
    "layers that are no names": (lambda: check_layers("flatness", (0,)), TypeError, r"tuple of .* names, not \(0,\)"),
    "a set of layers": (lambda: check_layers("flatness", {"0"}), TypeError, "tuple of .* names"),
    "a seed that is no number": (lambda: flatness(seed=True), TypeError, "a seed is a whole number .* or None .* True"),
    "another's seed": (lambda: input_noise(seed=True), TypeError, "a seed is a whole number .* or None"),
    "a negative seed": (lambda: flatness(seed=-1), ValueError, "a seed is a whole number of at least 0"),
    "an empty poison set": (lambda: poison(source=(X[:0], Y[:0])), ValueError, "the poison set is empty"),
    "an uneven one": (lambda: poison(source=(X, Y[:3])), ValueError, "as many targets as inputs, not 3 and 4"),
    "negative labels": (lambda: poison(source=(X, Y - 1)), ValueError, "class indices, from 0 on.*sample 0 is -1"),
    "labels of two axes": (lambda: poison(source=(X, Y[:, None])), ValueError, r"class indices, \[4\] of integers"),
    "labels that are numbers": (lambda: poison(source=(X, Y.double())), ValueError, "not .* of torch.float64"),
    "more classes than outputs": (
        lambda: poison(source=(X, Y + 1))(network(), (X, Y)),
        ValueError,
        "labels up to 3, but the network has 3 outputs: give labels from 0 to 2",
    ),
    "a class that is none": (lambda: reverse_cross_entropy(X, Y + 1), ValueError, "from 0 to 2; .* sample 2 is 3"),
    "a shape that does not fit": (lambda: path_step(shape=(7,)), ValueError, r"shape=\(7,\) .*give the shape of one"),
    "adaptive SAM": (
        lambda: SAM([nn.Parameter(X)], lr=0.1, adaptive=True),
        TypeError,
        r"SAM hands settings .* \(lr, adaptive\) to its base optimizer sgd, .*'adaptive'; the adaptive one is ASAM",
    ),
    "nonsense": (lambda: GSAM([nn.Parameter(X)], lr=0.1, nonsense=3), TypeError, "GSAM hands .* base .* 'nonsense'$"),
    "nonsense for a class": (
        lambda: ASAM([nn.Parameter(X)], base=torch.optim.Adam, nonsense=3),
        TypeError,
        "ASAM hands .* base optimizer Adam, .* 'nonsense'",
    ),
    "measuring every so often": (lambda: watch(every=True), TypeError, "every is a whole number of steps .* not True"),
    "measuring nothing": (
        lambda: landscope.measure(network(), nn.CrossEntropyLoss(), train=(X, Y), measures=[]),
        ValueError,
        "there is nothing to measure: .* None for all",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_words(name):
    make, kind, message = CASES[name]
    with pytest.raises(kind, match=message):
        make()


def test_what_is_right_is_let_through():
    for layers in (None, ("0",), ("0.weight", "2")):
        check_layers("flatness", layers)
    assert Draws(3, "flatness").seed == 3
    term = poison(source=(X, Y), seed=1)(network(), (X, Y))
    assert term.requires_grad
    path_step(shape=(3,))
    assert SAM([nn.Parameter(X)], lr=0.1, momentum=0.9).defaults["momentum"] == 0.9
