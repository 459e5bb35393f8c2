"""What landscapes are asked for: refused early and in words where it cannot be had; and what tells two apart."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import CLASSES, FEATURES, points
from torch import Tensor, nn
from torch.nn import functional

from landscope.basins import loss_along
from landscope.landscapes import (
    coordinates,
    curve,
    decision_boundaries,
    line,
    plane,
    random_axes,
    ray,
    trajectory,
)
from landscope.losses import cross_entropy
from landscope.models import mlp
from landscope.render import write_landscape
from landscope.types import Batches

NET = mlp((FEATURES,), CLASSES, widths=(4,))
FLAT = nn.Linear(2, 3)
ANYTHING: list[Any] = [(3, 4), 1.5]


def broken() -> nn.Module:
    net = copy.deepcopy(NET)
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = math.nan
    return net


def on(**settings: Any) -> Callable[[], Any]:
    given: dict[str, Any] = {"points": 3, **settings}
    return lambda: plane(NET, cross_entropy(), points(), **given)


def beside(state: nn.Module) -> Any:
    found = line(NET, cross_entropy(), points(), points=2)
    return trajectory(found, NET, [NET, state], cross_entropy(), points())


def bounded(**settings: Any) -> Callable[[], Any]:
    data = settings.pop("data", (torch.randn(4, 2), torch.arange(4) % 3))
    return lambda: decision_boundaries(FLAT, data, points=4, **settings)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an infinite cap": (on(cap=math.inf), "cap is a finite number above 0"),
    "part of a sample": (on(samples=10.5), "whole numbers"),
    "part of a batch": (on(batch_size=7.5), "whole numbers"),
    "half a shard": (on(shard=(0.5, 2), folder="x"), "whole numbers"),
    "half a point": (on(points=5.5), "points: whole numbers are needed, not 5.5|Type-check"),
    "points in words": (on(points="5"), "points: whole numbers|Type-check"),
    "a single end": (on(span=3), r"a span is \(low, high\), not 3|Type-check"),
    "no span": (on(span=None), r"a span is \(low, high\), not None|Type-check"),
    "pairs for a line": (lambda: line(NET, cross_entropy(), points(), points=ANYTHING[0]), "whole numbers|Type-check"),
    "an endless ray": (lambda: ray(NET, cross_entropy(), points(), reach=math.inf), "both finite"),
    "a broken checkpoint": (lambda: beside(broken()), "checkpoint 2 holds NaN or infinity in 1.weight"),
    "no checkpoints": (lambda: coordinates(NET, random_axes(NET), []), "no checkpoints"),
    "a curve to a broken one": (
        lambda: curve(NET, NET, broken(), cross_entropy(), points(), steps=10**9),
        "the second checkpoint holds NaN",
    ),
    "a curve to itself": (
        lambda: curve(NET, NET, NET, cross_entropy(), points(), steps=10**9),
        "have the same weights",
    ),
    "part of a step": (
        lambda: curve(NET, NET, broken(), cross_entropy(), points(), batch=ANYTHING[1]),
        "whole numbers|Type-check",
    ),
    "no offsets": (bounded(offsets=[]), "offsets= holds none"),
    "no samples": (bounded(data=(torch.zeros(0, 2), torch.zeros(0))), "one for each: not 0 and 0"),
    "unequal samples": (bounded(data=(torch.zeros(3, 2), torch.zeros(2))), "one for each: not 3 and 2"),
    "an endless square": (bounded(span=((0.0, math.inf), (0.0, 1.0))), "both finite"),
    "another network's way": (bounded(direction=random_axes(NET, count=1)), "the network has 9"),
    "no moving weights": (lambda: loss_along(FLAT, cross_entropy(), Batches(*points()), []), "none"),
    "one twice": (
        lambda: loss_along(FLAT, cross_entropy(), Batches(*points()), ["bias", "bias"]),
        "each named once",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_had_is_refused_in_words(what: str):
    ask, said = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=said):
        ask()


def test_a_picture_has_a_finite_top(tmp_path):
    found = plane(NET, cross_entropy(), points(), points=3)
    for ending in ("html", "svg", "vtk"):
        with pytest.raises(ValueError, match="cap=inf is no height"):
            write_landscape(found, tmp_path / f"a.{ending}", cap=math.inf)


def test_networks_that_differ_in_a_plain_attribute_have_chunks_of_their_own(tmp_path):
    class Warm(nn.Module):
        def __init__(self, temperature: float, act: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.temperature, self.act = nn.Linear(FEATURES, CLASSES), temperature, act

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.layer(x)) / self.temperature

    for settings in ((1.0, torch.tanh), (5.0, torch.tanh), (1.0, torch.relu)):
        net = Warm(*settings)
        kept, alone = (line(net, cross_entropy(), points(), points=2, folder=f) for f in (tmp_path, None))
        assert np.array_equal(kept.values["train_loss"], alone.values["train_loss"])
    assert len(list(tmp_path.iterdir())) == 3


def test_a_loss_that_refers_to_nothing_yet_has_chunks(tmp_path):
    def made() -> Callable[[Tensor, Tensor], Tensor]:
        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return functional.cross_entropy(outputs, targets) * (1.0 if len(targets) else later)

        if len(points()) > 5:  # never
            later = 2.0
        return loss

    assert line(NET, made(), points(), points=2, folder=tmp_path).not_finite() == 0


def test_a_chain_in_double_precision_is_exact_with_batchnorm():
    net, data = mlp((FEATURES,), CLASSES, widths=(6,), batchnorm=True), points()
    net.train()(data[0])
    chain, loop = (
        plane(net, cross_entropy(), data, points=3, dtype=torch.float64, way=way).values["train_loss"]
        for way in ("chain", "loop")
    )
    np.testing.assert_allclose(chain, loop, rtol=1e-13)


def test_boundaries_tell_more_than_256_classes_apart():
    net = nn.Linear(2, 300)
    with torch.no_grad():
        net.bias[290] = 100.0
    found = decision_boundaries(net, (torch.randn(5, 2), torch.arange(5)), points=3)
    assert (found.classes == 290).all()
