"""Decision boundaries as pictures and animations: PNG frames, GIF, MP4 where ffmpeg is, and a page with a slider."""

import base64
import html
import importlib.util
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from landscope.figures import SLOTS
from landscope.files import publish
from landscope.landscapes.boundaries import Boundaries
from landscope.render.look import theme_of
from landscope.render.surfaces import drawing

ENDINGS = ("gif", "mp4", "html", "png")
PACE = 100  # milliseconds a frame
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: auto; padding: 1rem; }
img { max-width: 100%; display: block; } .frame[hidden] { display: none; } input { width: 100%; }
"""
SLIDER = """
(function () {
  "use strict";
  const frames = document.querySelectorAll(".frame");
  const slider = document.getElementById("offset");
  slider.addEventListener("input", () => frames.forEach((f, i) => { f.hidden = i !== Number(slider.value); }));
})();
"""


def boundary_frames(
    found: Boundaries, *, theme: str = "light", width: float | int = 4.5, dpi: int = 110
) -> list[bytes]:
    """One PNG for each frame: the classes as colours, the samples on them, and the wrong ones as crosses.

    Args:
        found: What `landscope.landscapes.decision_boundaries` gives.
        theme: light or dark.
        width: In inches.
        dpi: Pixels an inch.
    """
    with drawing("landscope boundaries"):
        return [_frame(found, i, theme, width, dpi) for i in range(len(found))]


def _frame(found: Boundaries, number: int, theme: str, width: float | int, dpi: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure as Canvas

    colours = theme_of(theme)
    paints = [slot.light if theme == "light" else slot.dark for slot in SLOTS]
    canvas = Canvas(figsize=(width, width), layout="constrained", facecolor=colours.paper)
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    classes = found.classes[number]
    axes.pcolormesh(
        found.x,
        found.y,
        classes.T % len(paints),
        cmap=ListedColormap(paints),
        vmin=0,
        vmax=len(paints) - 1,
        alpha=0.35,
        shading="nearest",
        rasterized=True,
    )
    wrong = ~found.right[number]
    dots = [paints[int(t) % len(paints)] for t in found.targets]
    axes.scatter(*found.inputs[~wrong].T, c=[d for d, w in zip(dots, wrong, strict=True) if not w], s=9, linewidths=0)
    axes.scatter(*found.inputs[wrong].T, c=[d for d, w in zip(dots, wrong, strict=True) if w], s=22, marker="x")
    loss = "" if np.isnan(found.loss[number]) else f", loss {found.loss[number]:.3g}"
    title = f"offset {found.offsets[number]:+.4f}{loss}, accuracy {found.accuracy[number]:.1%}"
    axes.set_title(title, color=colours.ink)
    axes.set_xlim(found.x[0], found.x[-1])
    axes.set_ylim(found.y[0], found.y[-1])
    axes.set_xlabel("input 1", color=colours.ink)
    axes.set_ylabel("input 2", color=colours.ink)
    axes.tick_params(colors=colours.muted, labelcolor=colours.ink)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def write_boundaries(found: Boundaries, path: Path | str, *, theme: str = "light", width: float | int = 4.5) -> Path:
    """Write decision boundaries, as the name's ending says.

    ``.gif`` plays from the middle to one end, back through it to the other, and to the middle; so does ``.mp4``, which
    needs ffmpeg (a system's own, or that of the package imageio-ffmpeg); ``.html`` has a slider over the offsets;
    ``.png`` is the frame in the middle.

    Args:
        found: What `landscope.landscapes.decision_boundaries` gives.
        path: The file.
        theme: light or dark.
        width: In inches.

    Raises:
        ValueError: for another ending.
        LookupError: for MP4 where there is no ffmpeg.
        RuntimeError: where ffmpeg fails, with what it says.
    """
    path = Path(path)
    ending = path.suffix.removeprefix(".")
    if ending not in ENDINGS:
        raise ValueError(f"decision boundaries are written as {', '.join(ENDINGS)}, not {path.name}: name the file so")
    program = _ffmpeg() if ending == "mp4" else ""
    frames = boundary_frames(found, theme=theme, width=width)
    middle = len(frames) // 2
    if ending == "png":
        publish(path, frames[middle])
    elif ending == "html":
        publish(path, _page(found, frames).encode())
    else:
        there = [*range(middle, len(frames)), *range(len(frames) - 2, -1, -1), *range(1, middle)]
        played = [frames[i] for i in there]
        publish(path, _gif(played) if ending == "gif" else _mp4(played, program))
    return path


def _gif(frames: list[bytes]) -> bytes:
    from PIL import Image

    images = [Image.open(io.BytesIO(frame)).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=PACE, loop=0)
    return buffer.getvalue()


def _ffmpeg() -> str:
    """The program, of the system or of the package imageio-ffmpeg."""
    found = shutil.which("ffmpeg")
    if found is None and importlib.util.find_spec("imageio_ffmpeg") is not None:
        found = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    if found is None:
        raise LookupError(
            "an MP4 needs ffmpeg, which is not installed here: `pip install imageio-ffmpeg`, or take .gif or .html"
        )
    return found


def _mp4(frames: list[bytes], program: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        for i, frame in enumerate(frames):
            Path(folder, f"{i:05d}.png").write_bytes(frame)
        command = [program, "-loglevel", "error", "-framerate", str(1000 // PACE), "-i", "%05d.png"]
        even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "out.mp4"]
        done = subprocess.run([*command, *even], cwd=folder, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise RuntimeError(f"ffmpeg ({program}) could not write an MP4: {done.stderr.strip()}: take .gif or .html")
        return Path(folder, "out.mp4").read_bytes()


def _page(found: Boundaries, frames: list[bytes]) -> str:
    import hashlib

    policy = base64.b64encode(hashlib.sha256(SLIDER.encode()).digest()).decode()
    middle = len(frames) // 2
    images = "".join(
        f'<img class="frame"{"" if i == middle else " hidden"} alt="offset {found.offsets[i]:.4g}: accuracy '
        f'{found.accuracy[i]:.1%}" src="data:image/png;base64,{base64.b64encode(frame).decode()}">'
        for i, frame in enumerate(frames)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; script-src 'sha256-{policy}'; style-src 'unsafe-inline'; img-src data:\">"
        f"<title>Decision boundaries</title><style>{STYLE}</style></head><body><main><h1>Decision boundaries</h1>"
        f"<p>{html.escape(found.statement)}</p>{images}"
        f'<label>Offset along the direction <input type="range" id="offset" min="0" max="{len(frames) - 1}" '
        f'value="{middle}"></label></main><script>{SLIDER}</script></body></html>\n'
    )
