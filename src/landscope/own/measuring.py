"""From a checkpoint to its measures: printed, as a page, and as JSON."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import landscope.measures as all_measures
from landscope import losses
from landscope.data import Data, Source, find
from landscope.engine import environment, find_measures, measured, sized
from landscope.files import sha256
from landscope.linalg.progress import Progress, listening
from landscope.measures.outcomes import performance
from landscope.own.checkpoints import build, load_checkpoint, load_into
from landscope.own.facts import data_facts, fingerprint, print_values, sampled, told, values_json
from landscope.own.wanted import Wanted
from landscope.prediction import duration
from landscope.report import measures_html
from landscope.spec import Call, call, canonical, derive, key
from landscope.store import publish
from landscope.terminal import plain, progress

LONG = 2.0  # seconds that a measure may take before it is said how much is left
OFTEN = 15.0  # seconds between two lines in a log


def measure_checkpoint(wanted: Wanted) -> Path:
    """Measure a checkpoint, print the values, write the page and, if asked for, the JSON; returns the page's path."""
    wanted.check()
    found = find_measures(wanted.measures or sorted(all_measures.topics(), key=lambda topic: topic == "sharpness"))
    calls = [call(performance, errors=True) if one == call(performance) else one for one in found]
    state = load_checkpoint(wanted.checkpoint)
    model = build(wanted.factory)
    load_into(model, state, wanted.checkpoint)
    if not any(True for _ in model.parameters()):
        raise ValueError(
            f"--model {wanted.factory} returned a module that has no parameters: there is nothing to measure"
        )
    source = find(wanted.data, wanted.cache)
    draw = source.draw(**({} if wanted.train is None else {"train": wanted.train}))
    drawn = sized(draw(wanted.seed, wanted.cache))
    model.to(wanted.device).eval()
    outputs = _try(model, drawn.train.inputs[:2].to(wanted.device), drawn.outputs, source)
    values, seconds = _taken(model, wanted.loss, drawn, calls)
    values = sampled(values, drawn)
    facts = _facts(wanted, model, source, drawn, outputs)
    if wanted.json != "-":
        print_values(values, facts)
    path = wanted.page
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, _page(wanted, model, source, facts, values, seconds).encode())
    _write_json(wanted, _json(wanted, model, source, draw, drawn, calls, values, seconds))
    return path


def _taken(
    model: nn.Module, loss: str, drawn: Data, calls: Sequence[Call]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, float]]:
    """The values, and how many seconds each measure took."""
    began: dict[str, float] = {}
    with _saying(len(calls), began) as on_measure:
        values = measured(
            model,
            getattr(losses, loss)(),
            train=drawn.train,
            valid=drawn.valid,
            test=drawn.test,
            measures=calls,
            on_measure=on_measure,
        )
    starts = pairwise([*began.values(), time.monotonic()])
    return values, {name: after - before for name, (before, after) in zip(began, starts, strict=True)}


@contextmanager
def _saying(count: int, began: dict[str, float]) -> Iterator[Callable[[str], None]]:
    """A line that says what is measured and how much is left; in a log, a line now and then."""
    said = time.monotonic()

    def line(name: str, at: Progress | None = None) -> None:
        nonlocal said
        text = f"Measuring {name} ({len(began)} of {count}) …"
        if at is not None and at.seconds + at.left > LONG:
            left = f", about {duration(max(1.0, at.left))} left" if at.left else ""
            text = f"{text} {at.phase}: {at.products} of about {at.expected}{left}"
        say(text)
        if not sys.stderr.isatty() and time.monotonic() - said > OFTEN:
            said = time.monotonic()
            print(plain(text), file=sys.stderr, flush=True)

    def on_measure(name: str) -> None:
        began[name] = time.monotonic()
        line(name)

    with progress() as say, listening(lambda at: line(list(began)[-1] if began else "", at)):
        yield on_measure


def _facts(wanted: Wanted, model: nn.Module, source: Source, drawn: Data, outputs: Tensor) -> dict[str, str]:
    facts = {
        "checkpoint": wanted.checkpoint.name,
        "model": wanted.factory,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        **data_facts(source, drawn, wanted.seed, wanted.cache),
        "loss": f"{wanted.loss}, the mean over samples{' in nats' if wanted.loss == 'cross_entropy' else ''}",
        "precision": _dtype(model),
    }
    if wanted.loss == "cross_entropy" and _like_probabilities(outputs):
        facts["outputs"] = "look like probabilities, but cross_entropy takes logits: is there a softmax too many?"
    return facts


def _dtype(model: nn.Module) -> str:
    kinds = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in model.parameters())
    return ", ".join(kinds)


def _page(
    wanted: Wanted,
    model: nn.Module,
    source: Source,
    facts: Mapping[str, str],
    values: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> str:
    known = all_measures.names()
    topics = {name: topic.capitalize() for topic, names in all_measures.topics().items() for name in names}
    return measures_html(
        f"{wanted.checkpoint.name} on {source.name}",
        facts,
        values,
        command=wanted.command,
        environment={name: str(value) for name, value in environment().items()},
        notes={name: f"{known.get(name, '')} {told(part)}".strip() for name, part in values.items()},
        topics=topics,
        seconds=seconds,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


def _json(
    wanted: Wanted,
    model: nn.Module,
    source: Source,
    draw: Call,
    drawn: Data,
    calls: Sequence[Call],
    values: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that the numbers depend on, and the numbers with their errors."""
    sets = {name: part for name in ("train", "valid", "test") if (part := getattr(drawn, name)) is not None}
    return {
        "config": {
            "checkpoint": {"name": wanted.checkpoint.name, "sha256": sha256(wanted.checkpoint.read_bytes())},
            "model": wanted.factory,
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": wanted.loss,
            "device": wanted.device,
            # The seed of a measure's draws follows from its settings alone.
            "measures": {c.name: canonical(c) | {"seed": derive("measure", key(c))} for c in calls},
            "command": wanted.command,
        },
        "dtype": _dtype(model),
        "seed": wanted.seed,
        "data": {
            "name": source.name,
            "draw": canonical(draw),
            "sets": {name: fingerprint(part) for name, part in sets.items()},
        },
        "values": values_json(values),
        "seconds": {name: round(spent, 3) for name, spent in seconds.items()},
        "environment": dict(environment()),
    }


def _write_json(wanted: Wanted, content: Mapping[str, Any]) -> None:
    if wanted.json is None:
        return
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    if wanted.json == "-":
        print(text, end="")
        return
    path = Path(wanted.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, text.encode())


def _try(model: nn.Module, inputs: Tensor, outputs: int, source: Source) -> Tensor:
    """One forward pass, so that a wrong shape is told in our words before anything is computed."""
    try:
        with torch.no_grad():
            result = model(inputs)
    except Exception as error:
        raise ValueError(
            f"the model does not take the inputs of {source.name}, of shape {list(inputs.shape[1:])}: "
            f"{plain(str(error))[:300]} (they are float32; a factory may return a network that converts them first)"
        ) from error
    if not isinstance(result, Tensor) or result.dim() != 2 or result.shape[1] < outputs:
        got = f"shape {list(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise ValueError(f"the model gives {got} for 2 samples; {source.name} needs a tensor of shape [2, {outputs}]")
    return result


def _like_probabilities(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all()) and torch.allclose(outputs.sum(1), torch.ones_like(outputs[:, 0]), atol=1e-3)
