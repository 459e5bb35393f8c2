"""Are bad minima near every iterate of training? Huang et al. 2020, Figure 1, on the noise-free swiss roll."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.optim import SGD, RMSprop

from landscope.experiments._huang2020 import CLEAN, HUANG, PUBLISHED_TEST, check_set, glorot_mlp, minefield, resumed
from landscope.figures import Axis, Figure, Panel, Series, by_level, horizontal
from landscope.losses import cross_entropy
from landscope.measures.kernel import parameter_movement
from landscope.measures.outcomes import performance
from landscope.measures.parts import performance_of_parts
from landscope.measures.weights import projected_weights
from landscope.regularizers import weight_decay
from landscope.spec import Call, Claim, Experiment, Protocol, Published, Recipe, at, call
from landscope.stats import Units, Untestable
from landscope.types import Table

BATCH, EPOCH = 32, math.ceil(CLEAN / 32)  # samples in a batch, steps in an epoch
FRESH = 2_000
FITTED, BAD = 0.99, 0.53
LAYERS = tuple(f"{place}.weight" for place in (1, 3, 5, 7, 9))


@dataclass(frozen=True)
class Setup:
    """What is trained at one scale; everything is fixed here, before any run.

    Args:
        epochs: Of the trajectory.
        iterates: The epochs after which its iterates are taken.
        some: Those of them that the controls take.
        steps: Full-batch steps of the poisoned training from each iterate.
    """

    epochs: int
    iterates: tuple[int, ...]
    some: tuple[int, ...]
    steps: int


SCALES = {
    "smoke": Setup(10, (1, 6), (6,), 60),
    "laptop": Setup(2_000, tuple(range(1, 2_000, 80)), tuple(range(1, 2_000, 400)), 40_000),
    "paper": Setup(2_000, tuple(range(1, 2_000, 10)), tuple(range(1, 2_000, 50)), 40_000),
}

# --- runs -----------------------------------------------------------------------------------------------------------

KERAS: dict[str, Any] = {"alpha": 0.9, "eps": 1e-7}
RMSPROP = call(RMSprop, lr=0.01, **KERAS)


def _trajectory(of: Setup, seed: int, optimizer: Call) -> Recipe:
    return Recipe(
        data=call(minefield, poison="none", fresh=FRESH),
        model=call(glorot_mlp, widths=(25, 25, 25, 25), normal=True),
        loss=call(cross_entropy),
        optimizer=optimizer,
        regularizers=(call(weight_decay, strength=2e-3, layers=LAYERS),),  # half of it times the square: 1e-3, as Keras
        steps=of.epochs * EPOCH,
        batch_size=BATCH,
        seed=seed,
    )


def _from(trajectory: Recipe, of: Setup, epoch: int, poison: str) -> Recipe:
    """Training on the clean points and the poison points together, from an iterate of a trajectory."""
    return Recipe(
        data=call(minefield, poison=poison, fresh=FRESH),
        model=trajectory.model,
        loss=trajectory.loss,
        optimizer=call(RMSprop, lr=0.001, **KERAS),
        steps=of.steps,
        batch_size=CLEAN + PUBLISHED_TEST,
        seed=trajectory.seed,
        start=call(resumed, source=at(trajectory, epoch * EPOCH)),
    )


def _grid(of: Setup, seed: int, optimizer: Call, epochs: Sequence[int], poison: str) -> list[Recipe]:
    trajectory = _trajectory(of, seed, optimizer)
    return [trajectory, *(_from(trajectory, of, epoch, poison) for epoch in epochs)]


def published(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """One trajectory of RMSprop a seed, and poisoned training from its iterates."""
    check_set(data, "minefield")
    of = SCALES[scale]
    return [recipe for seed in seeds for recipe in _grid(of, seed, RMSPROP, of.iterates, "flipped")]


def in_words(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """The trajectory by SGD, as the text says; poisoned training from some of its iterates, as published."""
    check_set(data, "minefield")
    of, sgd = SCALES[scale], call(SGD, lr=0.01, momentum=0.9)
    return [recipe for seed in seeds for recipe in _grid(of, seed, sgd, of.some, "flipped")]


def true_labels(scale: str, data: Any, seeds: Sequence[int]) -> list[Recipe]:
    """From some iterates of the published trajectories, the same training with the poison points' own labels."""
    check_set(data, "minefield")
    of = SCALES[scale]
    ends = (of.some[0], of.some[-1])
    return [recipe for seed in seeds for recipe in _grid(of, seed, RMSPROP, sorted(set(ends)), "true")]


# --- statistics -----------------------------------------------------------------------------------------------------


def with_epochs(table: Table) -> Table:
    """The results with ``epoch``, after which a run's iterate was taken; of a trajectory itself it is None."""
    rows = []
    for row in table.rows():
        step = str(row.get("start.source") or "").partition("@")[2]
        rows.append(row | {"epoch": int(step.split()[-1]) // EPOCH if step else None})
    return Table.of(rows)


def worst_iterate(table: Table, /, *, value: str, worst: str, diverged: float, samples: int) -> Units:
    """The worst value over the minima found from a trajectory's iterates: one number a trajectory.

    Args:
        table: One protocol's results.
        value: An accuracy.
        worst: ``"min"`` or ``"max"``.
        diverged: What stands for a run that diverged.
        samples: What the accuracy is a share of: no spread below one sample's step is believed.

    Raises:
        Untestable: where no run from an iterate is there.
    """
    found: dict[Any, list[tuple[float, bool]]] = {}
    rows = [row for row in with_epochs(table).rows() if row["epoch"] is not None]
    for row in rows:
        whole = row["status"] == "done"
        found.setdefault(row["seed"], []).append((row[value] if whole else diverged, whole))
    if not found:
        raise Untestable("no run from an iterate is finished")
    seeds = sorted(found)
    take = {"min": min, "max": max}[worst]
    return Units(
        tuple(seeds),
        np.array([take(v for v, _ in found[seed]) for seed in seeds]),
        complete=np.array([all(whole for _, whole in found[seed]) for seed in seeds]),
        arms=len({row["epoch"] for row in rows}),
        found=len(rows),
        step=1 / samples,
        bounds=(0.0, 1.0),
    )


def distance_ratio(table: Table, /) -> Units:
    """How far a trajectory's bad minima are from their iterates, over the distance it travelled itself, as ln.

    Of the distances to the minima it is the median; a trajectory travelled from its first weights to its last.

    Args:
        table: One protocol's results.
    """
    rows = [row for row in with_epochs(table).rows() if row["status"] == "done"]
    own = {row["seed"]: row["distance_moved"] for row in rows if row["epoch"] is None}
    far = {s: [r["distance_moved"] for r in rows if r["epoch"] is not None and r["seed"] == s] for s in own}
    seeds = sorted(seed for seed in own if far[seed])
    values = [math.log(float(np.median(far[seed])) / own[seed]) for seed in seeds]
    arms = len({row["epoch"] for row in rows})
    return Units(tuple(seeds), np.array(values), arms=arms, found=len(rows))


def trajectory_end(table: Table, /, *, value: str, samples: int) -> Units:
    """A value at the end of each trajectory.

    Args:
        table: One protocol's results.
        value: An accuracy.
        samples: What it is a share of.
    """
    rows = [row for row in with_epochs(table).rows() if row["epoch"] is None and row["status"] == "done"]
    return Units(
        tuple(row["seed"] for row in rows), np.array([row[value] for row in rows]), step=1 / samples, bounds=(0.0, 1.0)
    )


# --- claims ---------------------------------------------------------------------------------------------------------


ALL = Published(BAD, 1, "one trajectory of 200 iterates: all blue dots are said to be so")


def _everywhere() -> tuple[Claim, ...]:
    """That a bad minimum is found from every iterate: that it fits, and that it fails on both test sets."""
    points: dict[str, Any] = {"unit": "points"}
    tested: dict[str, Any] = {"worst": "max", "diverged": 1.0}
    tests = (("first", "134 published", PUBLISHED_TEST), ("rest", f"{FRESH:,} fresh", FRESH))
    return (
        Claim(
            f"The worst of a trajectory's bad minima fits at least {FITTED:.0%} of the training points",
            call(worst_iterate, value="first_train_accuracy", worst="min", diverged=0.5, samples=CLEAN),
            expect="at_least",
            null=FITTED,
            **points,
        ),
        *(
            Claim(
                f"The best of them gets less than {BAD:.0%} of the {which} test points right",
                call(worst_iterate, value=f"{part}_test_accuracy", samples=samples, **tested),
                expect="less",
                null=BAD,
                paper=ALL,
                **points,
            )
            for part, which, samples in tests
        ),
    )


def claims(scale: str, data: Any) -> list[Claim]:
    """What the paper says of its Figure 1."""
    check_set(data, "minefield")
    points: dict[str, Any] = {"unit": "points"}
    return [
        Claim(
            f"From every iterate a minimum is found that fits {FITTED:.0%} of the training set, tests below {BAD:.0%}",
            None,
            "all_of",
            parts=_everywhere(),
            margin=0.01,
            reason="both levels are the paper's own words, near perfect (here within a point) and below 53 %",
            paper=ALL,
            expectation="Supported on the published test points, which lie among the poison; on fresh ones unclear.",
            **points,
        ),
        Claim(
            "Bad minima lie nearer to their iterates than the trajectory travelled",
            call(distance_ratio),
            expect="less",
            unit="ratio",
            primary=False,
            expectation="Unclear: the paper says 'within close proximity' without a number.",
        ),
        Claim(
            "The trajectory itself ends at a minimum that tests above 95 %",
            call(trajectory_end, value="first_test_accuracy", samples=PUBLISHED_TEST),
            expect="greater",
            null=0.95,
            primary=False,
            paper=Published(0.985, 1, "the yellow star of Figure 1, 98.5 % test accuracy"),
            expectation="Supported.",
            **points,
        ),
        Claim(
            "With the poison points' own labels the worst minimum from these iterates tests above 90 %",
            call(worst_iterate, value="first_test_accuracy", worst="min", diverged=0.5, samples=PUBLISHED_TEST),
            expect="greater",
            null=0.9,
            positive=True,
            **points,
        ),
    ]


# --- figures --------------------------------------------------------------------------------------------------------


def draw(results: Table, histories: Table) -> list[Figure]:
    """The paper's Figure 1 of one trajectory, and what was found from every iterate of all of them."""
    rows = [row for row in with_epochs(results).rows() if row["protocol"] == "published" and row["status"] == "done"]
    bad = [row for row in rows if row["epoch"] is not None]
    if not bad:
        return []
    return [figure for figure in (_map(bad), _accuracies(bad), _distances(rows, bad)) if figure is not None]


def _map(bad: Sequence[dict[str, Any]]) -> Figure | None:
    """Iterates and bad minima of the first trajectory, embedded by t-SNE."""
    from sklearn.manifold import TSNE

    seed = min(row["seed"] for row in bad)
    own = sorted((row for row in bad if row["seed"] == seed), key=lambda row: row["epoch"])
    if len(own) < 10:
        return None
    high = np.array([row["projected_start"] for row in own] + [row["projected_weights"] for row in own])
    perplexity = min(30.0, (len(high) - 1) / 3)
    flat = TSNE(2, perplexity=perplexity, init="random", random_state=0, method="exact").fit_transform(high)
    n = len(own)
    texts = [f"epoch {row['epoch']}" for row in own]
    tests = [f"from epoch {row['epoch']}: {row['rest_test_accuracy']:.1%} of fresh points" for row in own]
    series = (
        Series("iterates", flat[:n, 0], flat[:n, 1], mode="line+points", slot=1, hover=tuple(texts)),
        Series("bad minima", flat[n:, 0], flat[n:, 1], mode="points", slot=0, hover=tuple(tests)),
        Series("last iterate", flat[n - 1 : n, 0], flat[n - 1 : n, 1], mode="points", slot=7),
    )
    apart = np.linalg.norm(high[:n] - high[n:], axis=1)
    finding = (
        f"{n} iterates of the trajectory of seed {seed} and the bad minimum found from each, {np.median(apart):.3g} "
        "away in the median."
    )
    note = (
        f"t-SNE (perplexity {perplexity:.3g}, random start) of the weights projected at random to {high.shape[1]} "
        "dimensions. Distances in such a map are not those of the weights."
    )
    axes = Axis("t-SNE, first coordinate"), Axis("t-SNE, second coordinate")
    return Figure("minefield", "Iterates and bad minima", finding, (Panel("weights", *axes, series),), note)


def _accuracies(bad: Sequence[dict[str, Any]]) -> Figure:
    epochs = [row["epoch"] for row in bad]
    columns = (("first_train_accuracy", "training points", 0), ("first_test_accuracy", "published test points", 1))
    series: list[Series] = []
    for column, name, slot in (*columns, ("rest_test_accuracy", "fresh points", 2)):
        hover = [f"seed {row['seed']}, run {row['run']}" for row in bad]
        series += by_level(name, epochs, [100 * row[column] for row in bad], slot, hover=hover)
    ends = (min(epochs), max(epochs))
    series += [horizontal(f"{100 * level:g} %", 100 * level, ends) for level in (FITTED, BAD)]
    least = min(row["first_train_accuracy"] for row in bad)
    most = max(row["rest_test_accuracy"] for row in bad)
    finding = f"Of {len(bad)} minima, the least training accuracy is {least:.1%}, the best on fresh points {most:.1%}."
    panel = Panel("bad minima", Axis("epoch of the iterate"), Axis("accuracy (%)"), tuple(series))
    note = "Each point is one minimum; lines join the means over trajectories, with 95 % Student t intervals."
    return Figure("accuracies", "What is found from each iterate", finding, (panel,), note)


def _distances(rows: Sequence[dict[str, Any]], bad: Sequence[dict[str, Any]]) -> Figure:
    epochs, far = [row["epoch"] for row in bad], [row["distance_moved"] for row in bad]
    travelled = [row["distance_moved"] for row in rows if row["epoch"] is None]
    series = [*by_level("iterate to bad minimum", epochs, far, 0)]
    series += [horizontal("trajectory, start to end", d, (min(epochs), max(epochs))) for d in travelled]
    own = f"; the trajectories travelled {np.median(travelled):.3g}" if travelled else ""
    finding = f"Bad minima lie {np.median(far):.3g} from their iterates in the median of {len(far)}{own}."
    panel = Panel("distances", Axis("epoch of the iterate"), Axis("Euclidean distance of all weights"), tuple(series))
    return Figure("distances", "How near bad minima are", finding, (panel,), "Each point is one minimum.")


RUNS = {
    "published": Protocol(
        published,
        holds="From every iterate of a trajectory the same network is trained with the same settings for as many "
        "steps, on the trajectory's training points and on poison points with the other class's label.",
    ),
    "as the text says": Protocol(
        in_words,
        holds="As published, but the trajectory is SGD's with momentum (0.01, 0.9) instead of RMSprop's, and "
        "fewer of its iterates are taken.",
    ),
    "positive control": Protocol(
        true_labels,
        holds="The same training from the same iterates with the poison points' own labels: what it finds must test "
        "well, or the test says nothing about minima.",
        positive=True,
    ),
}

EXPERIMENT = Experiment(
    paper=HUANG,
    title="Are bad minima near every iterate of training?",
    summary="A network is trained on a noise-free swiss roll. From many of its iterates it is then trained on the same "
    "points and on others that are labelled wrongly, until it fits both. Judged is the worst of a trajectory's "
    "minima: whether it fits the training points, and fails on the published test points and on fresh ones.",
    runs=RUNS,
    seeds={"smoke": 2, "laptop": 8, "paper": 8},
    data=dict.fromkeys(SCALES, "minefield"),
    measures=(
        call(performance),
        call(performance_of_parts, train=CLEAN, test=PUBLISHED_TEST),
        call(parameter_movement),
        call(projected_weights, dimensions=100),
    ),
    claims=claims,
    figures=draw,
    deviations=(
        "Trajectories: 8, each of another split and initialisation, because the iterates of one are not independent; "
        "the paper has one. Laptop scale takes 25 iterates of each (every 80th epoch), the paper 200 (every 10th).",
        "Optimizer: RMSprop, as in the code; the text says SGD, which is the second protocol.",
        "Training points: all 132; the paper's code holds out every tenth of them, so that 118 are fitted.",
        "Outputs: two logits and softmax, where the code has one and a sigmoid. For two classes cross-entropy on a "
        "flipped label is the paper's reverse cross-entropy, and β = 134/266.",
        "Test points: the published 134, and 2,000 fresh ones at uniformly drawn angles; the paper has the 134 alone.",
        "t-SNE: of the weights projected at random to 100 dimensions, where the paper takes their principal components "
        "to 50; outliers stay in the picture, where the code leaves some out; one trajectory is drawn.",
        "Random draws: torch's, not those of Keras and Python; initialisation (Glorot's normal) and settings are "
        "Keras's.",
    ),
    varied=("initialisation", "order of the batches", "split into training, poison and test points", "fresh points"),
    fixed=("the 400 points", "the projection of the weights"),
)
