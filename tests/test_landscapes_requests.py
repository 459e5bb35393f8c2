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
from landscope.files import tensor_bytes
from landscope.landscapes import (
    coordinates,
    curve,
    decision_boundaries,
    line,
    load,
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


def trained_on(inputs: Tensor | None = None, targets: Tensor | None = None) -> Callable[[], Any]:
    data = points(40)
    pair = data[0] if inputs is None else inputs, data[1] if targets is None else targets
    return lambda: plane(NET, cross_entropy(), pair, points=3)


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
    "other inputs": (trained_on(torch.zeros(40, 7)), r"the network does not take the first inputs, float32 of .*7\]"),
    "other numbers": (trained_on(torch.zeros(40, 5).long()), "int64 .* weights are float32: convert the inputs"),
    "a class that is none": (
        trained_on(targets=torch.arange(40) // 39 * CLASSES),
        r"the loss does not take the lowest and highest targets, int64 of shape \[2\], 0 to 3",
    ),
    "classes in floats": (trained_on(targets=torch.zeros(40)), "does not take the first targets, float32"),
    "no offsets": (bounded(offsets=[]), "offsets= is a row of finite numbers"),
    "offsets without end": (bounded(offsets=[math.nan]), "offsets= is a row of finite numbers"),
    "no samples": (bounded(data=(torch.zeros(0, 2), torch.zeros(0))), r"one for each: not 0 and \[0\]"),
    "unequal samples": (bounded(data=(torch.zeros(3, 2), torch.zeros(2))), r"one for each: not 3 and \[2\]"),
    "inputs of NaN": (bounded(data=(torch.full((3, 2), math.nan), torch.zeros(3))), "some inputs are not finite"),
    "a pair of no tensors": (bounded(data=[[1.0, 2.0], [0]]), "a pair of tensors|Type-check"),
    "halves of classes": (bounded(data=(torch.randn(3, 2), torch.full((3,), 0.5))), "whole numbers from 0 on"),
    "a class beyond": (bounded(data=(torch.randn(3, 2), torch.full((3,), 3))), "tells 3 classes apart, 0 to 2, not 3"),
    "one span of two": (bounded(span=(-1.0, 1.0)), r"a span is \(low, high\)|Type-check"),
    "a span of three ends": (bounded(span=((0.0, 1.0, 2.0), (0.0, 1.0))), r"a span is \(low, high\)|Type-check"),
    "one point": (bounded(data=(torch.ones(3, 2), torch.zeros(3))), "which makes no range: give span="),
    "a network of three inputs": (
        lambda: decision_boundaries(nn.Linear(3, 2), (torch.randn(3, 2), torch.zeros(3))),
        "the network does not take the inputs",
    ),
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


def test_targets_of_any_kind_are_tried():
    one = nn.Linear(FEATURES, 1)

    def signs(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs))

    x, y = points()
    assert line(one, signs, (x, y > 1), points=2).not_finite() == 0
    each = nn.Sequential(nn.Linear(FEATURES, 3 * 2), nn.Unflatten(1, (3, 2)))
    two = torch.stack([y, y], 1)
    assert line(each, cross_entropy(), (x, two), points=2).not_finite() == 0
    two[-1, 1] = 3
    with pytest.raises(ValueError, match=r"lowest and highest targets, int64 of shape \[2, 2\], 0 to 3"):
        line(each, cross_entropy(), (x, two), points=2)


def test_what_a_network_raises_itself_is_left_as_it_is():
    class Stop(RuntimeError):
        pass

    class Stopping(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.layer, self.error = nn.Linear(FEATURES, CLASSES), error

        def forward(self, x: Tensor) -> Tensor:
            raise self.error

    with pytest.raises(Stop, match="enough"):
        line(Stopping(Stop("enough")), cross_entropy(), points(), points=2)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        line(Stopping(RuntimeError("can't allocate memory")), cross_entropy(), points(), points=2)
    with pytest.raises(ValueError, match=r"does not take the first inputs.*AssertionError: five"):
        line(Stopping(AssertionError("five")), cross_entropy(), points(), points=2)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_units_has_no_direction():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 0), nn.Linear(0, 2))
    assert len(random_axes(net)) == 2


def test_what_is_no_landscape_is_not_read(tmp_path):
    line(NET, cross_entropy(), points(), points=2).save(tmp_path / "line")
    assert load(tmp_path / "line").kind == "line"
    (tmp_path / "tensors").write_bytes(tensor_bytes({"a": np.zeros(2)}, {"other": 1}))
    empty: dict[str, Any] = {"kind": "line", "directions": {}, "facts": {}}
    (tmp_path / "half").write_bytes(tensor_bytes({"a": np.zeros(2)}, empty))
    (tmp_path / "torn").write_bytes((tmp_path / "line").read_bytes()[:-1])
    np.savez(tmp_path / "arrays.npz", a=1)
    for other in ("tensors", "half", "torn", "arrays.npz"):
        with pytest.raises(ValueError, match=f"{other} is not, or no longer, what Landscape.save has written"):
            load(tmp_path / other)


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
