"""Landscapes as files: an interactive page, pictures, tables, and what other programs read."""

import base64
import hashlib
import html
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from landscope.files import publish
from landscope.landscapes.exports import csv_text, emptiness, height, npz_bytes, vtk_text
from landscope.landscapes.result import STATUS, Landscape
from landscope.render.look import THEMES
from landscope.render.surfaces import FORMS, landscape_file, lines_figure, title_of
from landscope.render.web import plotly_json

ENDINGS = ("html", *FORMS, "csv", "vtk", "npz", "safetensors")
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #555c64; --paper: #ffffff; --rule: #dfe3e7; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --muted: #a9b1ba; --paper: #15181c; --rule: #343b43; }
}
body { margin: 0 auto; max-width: 62rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.3rem; } .controls { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }
input[type=number] { width: 7rem; } dt { color: var(--muted); } dd { margin: 0 0 .5rem; overflow-wrap: anywhere; }
.static svg { max-width: 100%; height: auto; }
@media print {
  #surface, #lines, .controls, summary, details:not(.print, [open]) { display: none; }
  .print::details-content { content-visibility: visible; display: block; block-size: auto; }
  .static svg { max-height: 24cm; } dl > *, svg { break-inside: avoid; } h2, dt { break-after: avoid; }
}
"""


def write_landscape(
    landscape: Landscape,
    path: Path | str,
    *,
    name: str = "train_loss",
    log: bool = True,
    cap: float | int | None = None,
    theme: str = "light",
    width: float | int = 6.75,
) -> Path:
    """Write a landscape, as the name's ending says.

    ``.html``: a surface to turn, with contours, logarithm and cap, or lines, with values under the pointer and
    trajectories, in one file that needs nothing else; ``.svg``, ``.pdf``, ``.png``: contours or lines; ``.csv``: a row
    a point of the grid, without trajectories (`Trajectory.rows` has those); ``.vtk``: a structured grid for ParaView,
    also without; ``.npz``: arrays for NumPy; ``.safetensors``: all of it, for `landscope.landscapes.load`.

    Args:
        landscape: What to write.
        path: The file; one of the same name is replaced.
        name: Which values of a plane are drawn; a page begins with them.
        log: Whether heights and colours of a plane follow the logarithm of a loss, where all of it lies above 0.
        cap: The largest value drawn of a plane; infinite ones are drawn there.
        theme: ``"light"`` or ``"dark"``, of pictures.
        width: Of pictures, in inches.

    Raises:
        ValueError: for another ending, or what cannot be drawn.
    """
    path = Path(path)
    ending = path.suffix.removeprefix(".")
    if ending not in ENDINGS:
        raise ValueError(f"a landscape is written as {', '.join(ENDINGS)}, not {path.name}: name the file so")
    if ending == "safetensors":
        return landscape.save(path)
    if ending in FORMS:
        content = landscape_file(landscape, ending, name=name, log=log, cap=cap, theme=theme, width=width)
    elif ending == "html":
        content = landscape_html(landscape, name=name, log=log, cap=cap).encode()
    elif ending == "npz":
        content = npz_bytes(landscape)
    else:
        content = (csv_text(landscape) if ending == "csv" else vtk_text(landscape, name, log=log, cap=cap)).encode()
    publish(path, content)
    return path


def landscape_html(
    landscape: Landscape, *, name: str = "train_loss", log: bool = True, cap: float | int | None = None
) -> str:
    """A landscape as one HTML file without any address in it; a policy lets its own scripts run alone.

    A plane is a surface to turn, the other kinds are lines; the picture under it needs no script.

    Args:
        landscape: What to show.
        name: The values of a plane that the page begins with; all of these can be changed there.
        log: Whether it begins with the logarithm.
        cap: The cap that it begins with.
    """
    if len(landscape.axes) == 1:
        return _lines_html(landscape)
    controls = (
        '<div class="controls"><label>Values <select id="which"></select></label>'
        '<label><input type="checkbox" id="log" checked> logarithm</label>'
        '<label>Cap <input type="number" id="cap" step="any"></label>'
        '<button type="button" id="above">From above</button>'
        '<button type="button" id="aside">From the side</button></div>'
        '<div id="surface" role="img" aria-label="The surface, to turn with the pointer"></div>'
    )
    height(landscape, name, log=log, cap=cap)  # which says what cannot be
    still = ""
    if not emptiness(landscape, name):
        drawn = _inline(landscape_file(landscape, "svg", name=name, log=log, cap=cap))
        still = f'<details class="static print"><summary>Contours</summary>{drawn}</details>'
    scripts = [_text(f"{name}.js") for name in ("vendor/plotly-gl3d.min", "templates/landscape", "templates/print")]
    body = controls + still + _paths(landscape) + _script(_data(landscape) | {"name": name, "log": log, "cap": cap})
    return _page(landscape, body, _finding(landscape), scripts)


def _lines_html(landscape: Landscape) -> str:
    if emptiness(landscape):
        return _page(landscape, "", _finding(landscape), [])
    figure, drawn = lines_figure(landscape), _inline(landscape_file(landscape, "svg"))
    lines = '<div id="lines" role="img" aria-label="The lines, with their values under the pointer"></div>'
    still = f'<details class="static print"><summary>Picture</summary>{drawn}</details>'
    data = _script({theme: plotly_json(figure, theme) for theme in THEMES})
    names = ("vendor/plotly-cartesian.min", "templates/landscape-lines", "templates/print")
    scripts = [_text(f"{name}.js") for name in names]
    return _page(landscape, lines + still + _paths(landscape) + data, figure.finding, scripts)


def _script(data: Any) -> str:
    """What the page's own script reads."""
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="landscape-data">{text}</script>'


def _page(landscape: Landscape, body: str, finding: str, scripts: list[str]) -> str:
    hashes = " ".join(f"'sha256-{_hash(s)}'" for s in scripts) or "'none'"
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in landscape.facts.items())
    title = html.escape(title_of(landscape, "loss"))
    axes = "".join(f"<dt>axis {'ab'[i]}</dt><dd>{html.escape(label)}</dd>" for i, label in enumerate(landscape.labels))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1><p>{html.escape(finding)}</p>"
        f"{body}<h2>What was done</h2><dl>{axes}{facts}</dl></main>"
        + "".join(f"<script>{script}</script>" for script in scripts)
        + "</body></html>\n"
    )


def _finding(landscape: Landscape) -> str:
    loss = landscape.values["train_loss"]
    finite = np.isfinite(loss)
    if not finite.any():
        return _sentence(emptiness(landscape))
    i, j = np.unravel_index(int(np.argmin(np.where(finite, loss, np.inf))), loss.shape)
    place = f"({landscape.axes[0][i]:.3g}, {landscape.axes[1][j]:.3g})"
    wrong = landscape.not_finite()
    gaps = (
        f" {wrong} points are NaN or infinite and drawn as gaps, infinite ones at a cap that is set." if wrong else ""
    )
    return f"The training loss is least, {loss[i, j]:.4g}, at {place}, and reaches {loss[finite].max():.4g}.{gaps}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _paths(landscape: Landscape) -> str:
    found = ""
    for path in landscape.trajectories:
        rows = [{k: v if isinstance(v, str) else f"{v:.5g}" for k, v in row.items()} for row in path.rows()]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
        cells = ("".join(f"<td>{html.escape(value)}</td>" for value in row.values()) for row in rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        found += f"<details><summary>{html.escape(path.name)}</summary><table><tr>{head}</tr>{body}</table></details>"
    return found


def _data(landscape: Landscape) -> dict[str, Any]:
    return {
        "a": landscape.axes[0].tolist(),
        "b": landscape.axes[1].tolist(),
        "values": {name: _listed(values) for name, values in landscape.values.items()},
        "status": landscape.status.tolist(),
        "how": STATUS,
        "paths": [
            {
                "name": path.name,
                "names": path.names,
                "x": path.coordinates[:, 0].tolist(),
                "y": path.coordinates[:, 1].tolist(),
                "off_plane": path.off_plane.tolist(),
                "true": {name: _listed(v) for name, v in path.true.items()},
                "on_plane": {name: _listed(v) for name, v in path.on_plane.items()},
            }
            for path in landscape.trajectories
        ],
    }


def _listed(values: Any) -> Any:
    """Nested lists; what is not finite in words, for JSON has no numbers for it."""
    if isinstance(values, np.ndarray):
        return [_listed(part) for part in values]
    number = float(values)
    return number if math.isfinite(number) else str(number)


def _inline(content: bytes) -> str:
    text = content.decode()
    return text[text.index("<svg") :]


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _text(name: str) -> str:
    return resources.files("landscope").joinpath(name).read_text(encoding="utf-8")
