"""Tables and stores of made-up runs on a grid of settings, for ranking."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscope import store
from landscope.spec import Call, Cell, Recipe, at, key
from landscope.types import Table

BATCHES, RATES, WIDTHS = (8, 16, 32), (0.01, 0.1), (16, 64)
LEVELS: Mapping[str, Sequence[Any]] = {"batch_size": BATCHES, "optimizer.lr": RATES, "model.width": WIDTHS}
MEASURE = Call("landscope.measures.made_up")
Place = tuple[int, ...]


def runs(
    values: Callable[[Place, int, np.random.Generator], Mapping[str, float]],
    levels: Mapping[str, Sequence[Any]] = LEVELS,
    seeds: int = 1,
    draw: int = 0,
) -> list[dict[str, Any]]:
    """A row for every combination of levels and every seed; ``values`` gives measures and outcome at a place."""
    random = np.random.default_rng(draw)
    return [
        {"status": "done", "seed": seed, "data": "digits"}
        | {name: own[i] for (name, own), i in zip(levels.items(), place, strict=True)}
        | dict(values(place, seed, random))
        for place in np.ndindex(*map(len, levels.values()))
        for seed in range(seeds)
    ]


def table(*args: Any, **settings: Any) -> Table:
    return Table.of(runs(*args, **settings))


def related(place: Place, seed: int, random: np.random.Generator) -> dict[str, float]:
    """A measure that follows the outcome, one that opposes it, one that does neither; all with noise."""
    base = np.random.default_rng(hash(place) % 2**32).normal() + place[0]
    return {
        "follows": base + 0.1 * random.normal(),
        "opposes": -base + 0.5 * random.normal(),
        "unrelated": random.normal(),
        "train_loss": random.random(),
        "generalization_gap": 0.1 * base + 0.01 * random.normal(),
    }


def made_store(
    root: Path, rows: Sequence[Mapping[str, Any]], *, spectrum: bool = False, measure: Call = MEASURE
) -> Path:
    """A store that holds these rows as finished runs; what a row says beyond its settings was measured at the end."""
    for row in rows:
        recipe = Recipe(
            Call("landscope.data.digits", (("test", 400), ("train", 256))),
            Call("landscope.models.wide_mlp", (("width", row["model.width"]),)),
            Call("landscope.losses.cross_entropy"),
            Call("torch.optim.SGD", (("lr", row["optimizer.lr"]),)),
            100,
            row["batch_size"],
            row["seed"],
        )
        run = store.write_spec(root, recipe)
        record = {"status": row["status"], "steps": 100, "gradient_evaluations": 800}
        store.finish_run(root, run, record=record, history=[{"step": 100}], states={}, environment={})
        if row["status"] == "done":
            named = {k: v for k, v in row.items() if k not in (*LEVELS, "status", "seed", "data")}
            named |= {"spectrum": np.array([1.0, 2.0]) * row["follows"]} if spectrum else {}
            store.write_values(root, Cell(at(recipe, "end"), (measure,)), {key(measure): named})
    return root
