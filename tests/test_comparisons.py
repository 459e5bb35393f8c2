"""Figures that set protocols side by side, on numbers that are known."""

import numpy as np
import pytest

from landscope.comparisons import against, along, configurations, learning
from landscope.types import Table


def rows(protocol_factor=1.0, **more):
    return Table.of(
        {
            "seed": seed,
            "batch_size": size,
            "run": f"{seed}{size}",
            "value": protocol_factor * size * 2.0**seed,
            "accuracy": 90.0 - seed - size / 100,
            "grid": (0.1, 1.0, 10.0),
            "curve": (size * 1.0, size * 2.0, size * 4.0),
            **more,
        }
        for size in (32, 8)
        for seed in (0, 1, 2)
    )


TABLES = {"published": rows(), "control": rows(10.0)}


def test_against_draws_every_seed_and_says_the_geometric_means():
    figure = against(TABLES, "sharp", "Sharpness", "value", "sharpness (1/step)")
    assert figure is not None
    assert [panel.title for panel in figure.panels] == ["published", "control"]
    for panel in figure.panels:
        points = [s for s in panel.series if s.mode == "points"]
        assert sum(len(s.x) for s in points) == 6
        assert panel.y.limits == figure.panels[0].y.limits  # panels can be compared
    # 2^0, 2^1, 2^2: the geometric mean is 2
    assert "published: 16 at batch 8, 64 at batch 32" in figure.finding
    assert "control: 160 at batch 8, 640 at batch 32" in figure.finding
    assert figure.finding.startswith("Sharpness, geometric mean over seeds")


def test_against_on_a_plain_scale_takes_plain_means():
    figure = against({"published": rows()}, "acc", "Accuracy", "accuracy", "accuracy (%)", log=False)
    assert figure is not None
    assert "published: 88.9 at batch 8, 88.7 at batch 32" in figure.finding


def test_along_quotes_the_position_it_is_asked_for():
    figure = along(TABLES, "noise", "Noise", "grid", "σ", "curve", "loss (nats)", index=1, where="σ = 1")
    assert figure is not None
    assert "Loss at σ = 1, geometric mean over seeds" in figure.finding
    assert "published: 16 at batch 8, 64 at batch 32" in figure.finding
    assert all(np.array_equal(s.x, (0.1, 1.0, 10.0)) for panel in figure.panels for s in panel.series)


def test_along_survives_values_without_a_logarithm():
    table = rows(curve=(-1.0, 0.0, 2.0))
    figure = along({"published": table}, "noise", "Noise", "grid", "σ", "curve", "loss", index=2, where="σ = 10")
    assert figure is not None
    assert "2 at batch 8" in figure.finding
    figure = along({"published": table}, "noise", "Noise", "grid", "σ", "curve", "loss", index=0, where="σ = 0.1")
    assert figure is not None
    assert "no mean (a seed is not above 0) at batch 8" in figure.finding


def test_configurations_average_over_seeds_first():
    figure = configurations(TABLES, "both", "Both", "value", "sharpness", "accuracy", "accuracy (%)")
    assert figure is not None
    (panel,) = figure.panels
    assert [len(s.x) for s in panel.series] == [2, 2]
    assert panel.series[0].x.tolist() == pytest.approx([16, 64])
    assert panel.series[0].y.tolist() == pytest.approx([88.92, 88.68])
    assert "4 configurations" in figure.finding


def test_learning_goes_as_far_as_every_seed_goes():
    table = Table.of(
        {"seed": seed, "batch_size": 8, "step": step, "loss": 1.0 / (step + 1), "optimizer": "SGD"}
        for seed, last in ((0, 3), (1, 2))
        for step in range(last + 1)
    )
    figure = learning({"published": table}, "curves", "Curves", "loss", "loss (nats)")
    assert figure is not None
    assert {tuple(s.x) for s in figure.panels[0].series} == {(1, 2)}
    assert "published: 0.333 at batch 8" in figure.finding


@pytest.mark.parametrize("tables", [{}, {"published": Table.of([])}, {"published": rows(value=None)}])
def test_nothing_to_draw_is_no_figure(tables):
    assert against(tables, "a", "A", "value", "v") is None
    assert configurations(tables, "a", "A", "value", "v", "accuracy", "w") is None
    assert along(tables, "a", "A", "grid", "g", "nothing", "v", index=0, where="0") is None
    assert learning(tables, "a", "A", "nothing", "v") is None
