"""Landscapes on paper: contours with trajectories, lines, and the loss of checkpoints beside the plane's."""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from landscope.figures import SLOTS, Axis, Figure, Panel, Series
from landscope.landscapes.exports import emptiness, height, is_log
from landscope.landscapes.result import INTERPOLATED, MISSING, STOPPED, Landscape, Trajectory
from landscope.render.look import colour, plain, theme_of, wrapped
from landscope.render.paper import _settings, pdf, png, svg_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LEVELS = 24
FORMS = ("svg", "pdf", "png")


def title_of(landscape: Landscape, name: str) -> str:
    """What is drawn, in a line."""
    return f"{name.replace('_', ' ').capitalize()} on a {landscape.kind}"


def note_of(landscape: Landscape) -> str:
    """What a reader has to know: directions, statistics, samples, and what is missing or not computed."""
    said = [landscape.facts[name] for name in ("directions",) if name in landscape.facts]
    for what in ("BatchNorm statistics", "train samples", "not finite", "cap", "refined"):
        if what in landscape.facts:
            said.append(f"{what}: {landscape.facts[what]}")
    counts = {STOPPED: "left beyond the cap", INTERPOLATED: "interpolated", MISSING: "not computed yet"}
    said += [f"{landscape.count(s)} points {what}" for s, what in counts.items() if landscape.count(s)]
    return "; ".join(said)


def lines_figure(landscape: Landscape) -> Figure:
    """A line, ray, interpolation or curve as a Figure: losses in one panel, accuracies in another.

    Checkpoints of a trajectory stand with their true values where they project to; what the line has there and how far
    off it they lie is said under the pointer, and the distance has a panel of its own.

    Raises:
        ValueError: for a plane, or where no loss is finite.
    """
    if len(landscape.axes) != 1:
        raise ValueError("a plane is a surface: write it with write_landscape")
    axis = Axis(landscape.labels[0])
    panels = []
    for what in ("loss", "accuracy"):
        names = [name for name in landscape.values if name.endswith(f"_{what}")]
        if names:
            series = [_series(landscape, name, i) for i, name in enumerate(names)]
            series += [s for i, name in enumerate(names) for s in _checkpoints(landscape, name, i)]
            label = Axis("mean loss" if what == "loss" else "accuracy")
            panels.append(Panel(what.capitalize(), axis, label, tuple(series)))
    if landscape.trajectories:
        apart = tuple(_checkpoints(landscape, "train_loss", 0, apart=True))
        label = Axis(f"distance from the {landscape.kind}, in weights")
        panels.append(Panel("Distance", axis, label, apart))
    if emptiness(landscape):
        raise ValueError(emptiness(landscape))
    loss, x = landscape.values["train_loss"], landscape.axes[0]
    finite = np.isfinite(loss)
    least, most = (f(np.where(finite, loss, fill)) for f, fill in ((np.argmin, np.inf), (np.argmax, -np.inf)))
    finding = (
        f"The training loss lies between {loss[least]:.4g} (at {x[least]:.3g}) and {loss[most]:.4g} "
        f"(at {x[most]:.3g}) on {len(x)} points of the {landscape.kind}."
    )
    for path in landscape.trajectories:
        finding += f" Checkpoints of the {path.name} lie up to {path.off_plane.max():.4g} off it, in weights."
    return Figure(
        f"landscape-{landscape.kind}", title_of(landscape, "loss"), finding, tuple(panels), note_of(landscape)
    )


def _series(landscape: Landscape, name: str, slot: int) -> Series:
    y = np.where(np.isfinite(landscape.values[name]), landscape.values[name], np.nan)
    error = landscape.values.get(f"{name}_sem")
    low, high = (None, None) if error is None else (y - 1.96 * error, y + 1.96 * error)
    group = f"{name.partition('_')[0]} set"
    return Series(name.replace("_", " "), landscape.axes[0], y, low, high, slot=slot, group=group, marks=False)


def _checkpoints(landscape: Landscape, name: str, slot: int, apart: bool = False) -> Iterator[Series]:
    """What checkpoints really have, or how far off the line they lie, over where they project to."""
    for number, path in enumerate(landscape.trajectories):
        if name not in path.true:
            continue
        true, there = path.true[name], path.on_plane[name]
        hover = (
            f"{checkpoint}: {off:.4g} off the {landscape.kind}, which has {value:.4g} there"
            for checkpoint, off, value in zip(path.names, path.off_plane, there, strict=True)
        )
        group = f"{path.name}, {name.partition('_')[0]} set"
        yield Series(
            f"{path.name}: true {name.replace('_', ' ')}" if not apart else path.name,
            path.coordinates[:, 0],
            path.off_plane if apart else np.where(np.isfinite(true), true, np.nan),
            mode="line+points",
            slot=(2 + 2 * number + slot) % len(SLOTS),
            hover=tuple(hover),
            group=group,
        )


def drawing(salt: str) -> Any:
    """Matplotlib's own defaults with our settings, until the block ends."""
    import matplotlib

    ours: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    ours.update(_settings(salt))
    return matplotlib.rc_context(ours)


def landscape_file(
    landscape: Landscape,
    form: str,
    *,
    name: str = "train_loss",
    log: bool = True,
    cap: float | int | None = None,
    theme: str = "light",
    width: float | int = 6.75,
) -> bytes:
    """A landscape as the bytes of an SVG, PDF or PNG file; a plane as filled contours, gaps where nothing is known.

    Args:
        landscape: What to draw.
        form: ``"svg"``, ``"pdf"`` or ``"png"``.
        name: Which values of a plane.
        log: Whether a plane's colours follow the logarithm of a loss, where all of it lies above 0.
        cap: The largest value drawn of a plane.
        theme: light or dark.
        width: In inches.

    Raises:
        ValueError: for another form, values that there are not, or nothing finite to draw.
    """
    if form not in FORMS:
        raise ValueError(f"a landscape is drawn as {', '.join(FORMS)}, not {form!r}")
    if len(landscape.axes) == 1:
        figure = lines_figure(landscape)
        return (
            svg_file(figure, theme, width).encode()
            if form == "svg"
            else (pdf if form == "pdf" else png)(figure, width, theme)
        )
    with drawing("landscope landscape"):
        canvas = _plane(landscape, name, log, cap, theme, width)
        buffer = io.BytesIO()
        options = {
            "svg": {"Date": None},
            "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
            "png": {"Software": None},
        }
        canvas.savefig(buffer, format=form, metadata=options[form], dpi=300)
    return buffer.getvalue()


def _plane(
    landscape: Landscape, name: str, log: bool, cap: float | int | None, theme: str, width: float | int
) -> "Canvas":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    colours, paths = theme_of(theme), landscape.trajectories
    wide = 1 + any(name in path.true for path in paths)
    canvas = Canvas(figsize=(width, 0.78 * width / wide + 0.4), layout="constrained", facecolor=colours.paper)
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(1, wide, squeeze=False)[0]
    drawn = height(landscape, name, log=log, cap=cap)
    if emptiness(landscape, name):
        raise ValueError(emptiness(landscape, name))
    low, high = float(np.nanmin(drawn)), float(np.nanmax(drawn))
    levels = np.linspace(low, high if high > low else low + 1e-6 * (abs(low) or 1.0), LEVELS)
    a, b = landscape.axes
    masked = np.ma.masked_invalid(drawn.T)
    filled = axes[0].contourf(a, b, masked, levels=levels, cmap="viridis")
    axes[0].contour(a, b, masked, levels=levels[::3], colors="#ffffff", linewidths=0.4, alpha=0.6)
    bar = canvas.colorbar(filled, ax=axes[0])
    if is_log(landscape, name, log):
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{10**value:.3g}")
    bar.ax.tick_params(colors=colours.muted, labelcolor=colours.ink)
    bar.set_label(name.replace("_", " "), color=colours.ink)
    axes[0].set_facecolor(colours.grid)  # which shows in the gaps
    _named(axes[0], landscape.labels, title_of(landscape, name), theme)
    for number, path in enumerate(paths):
        paint = colour(number + 1, theme)
        axes[0].plot(
            *path.coordinates.T[:2], color=paint, marker="o", markersize=3, linewidth=1, label=plain(path.name)
        )
        if name in path.true:
            _losses(axes[1], path, name, paint, theme)
    axes[0].set_xlim(a[0], a[-1])
    axes[0].set_ylim(b[0], b[-1])
    return canvas


def _losses(axes: "Axes", path: Trajectory, name: str, paint: str, theme: str) -> None:
    """The true values of checkpoints and the plane's where they project to, over their distance from the plane."""
    steps = np.arange(len(path))
    true, there = path.true[name], path.on_plane[name]
    axes.plot(steps, true, color=paint, marker="o", markersize=3, label=f"{plain(path.name)}: true")
    axes.plot(steps, there, color=paint, marker="s", markersize=3, linestyle="dashed", label="where it projects to")
    seen = np.concatenate([true, there])
    if name.endswith("loss") and np.isfinite(seen).all() and seen.min() > 0 and seen.max() / seen.min() > 30:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    other = axes.twinx()
    other.plot(steps, path.off_plane, color=theme_of(theme).muted, linestyle="dotted")
    other.set_ylabel("distance from the plane, in weights", color=theme_of(theme).ink)
    other.tick_params(colors=theme_of(theme).muted, labelcolor=theme_of(theme).ink)
    _named(axes, ("checkpoint", name.replace("_", " ")), "True loss and the plane's", theme)
    axes.plot([], [], color=theme_of(theme).muted, linestyle="dotted", label="distance from the plane")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, labelcolor=theme_of(theme).ink, fontsize=6.5
    )


def _named(axes: "Axes", labels: tuple[str, ...], title: str, theme: str) -> None:
    colours = theme_of(theme)
    axes.set_title(plain(title), color=colours.ink)
    axes.set_xlabel(_short(labels[0]), color=colours.ink)
    axes.set_ylabel(_short(labels[1]), color=colours.ink)
    axes.tick_params(colors=colours.muted, labelcolor=colours.ink)


def _short(text: str) -> str:
    return "\n".join(wrapped(text, 34, 2))
