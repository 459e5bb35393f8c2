"""What lies on landscapes and how they are written: trajectories, curves, decision boundaries, files, the command."""

import copy
import csv
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from cases import CLASSES, FEATURES, everything, points, same
from PIL import Image
from safetensors.torch import save_model
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from landscope.cli import app
from landscope.files import read_tensors, tensor_bytes
from landscope.landscapes import (
    MISSING,
    Directions,
    Landscape,
    curve,
    decision_boundaries,
    embedding,
    interpolation,
    line,
    load,
    plane,
    trajectory,
    trajectory_axes,
    weights_of,
    wiggle,
)
from landscope.losses import cross_entropy
from landscope.models import mlp, seeded
from landscope.render import landscape_html, lines_figure, write_boundaries, write_landscape


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


def trained(net: nn.Module, data: Any, steps: int = 60) -> list[dict[str, torch.Tensor]]:
    states, optimizer = [], torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(steps + 1):
        if step % 15 == 0:
            states.append({name: t.clone() for name, t in net.state_dict().items()})
        optimizer.zero_grad()
        functional.cross_entropy(net(data[0]), data[1]).backward()
        optimizer.step()
    net.load_state_dict(states[-1])
    return states


@pytest.fixture(scope="module")
def walk() -> tuple[nn.Module, list[dict[str, torch.Tensor]], Landscape]:
    """A short training with the plane of its principal directions."""
    with seeded(0):
        model, data = mlp((FEATURES,), CLASSES, widths=(5,)), points()
        states = trained(model, data)
    found = plane(model, cross_entropy(), data, data, directions=trajectory_axes(model, states), span=(-4, 4), points=9)
    return model, states, trajectory(found, model, states, cross_entropy(), data, data)


def test_checkpoints_are_shown_with_their_distance_and_their_own_loss(walk):
    model, states, found = walk
    (path,) = found.trajectories
    inputs, targets = points()
    origin = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()
    columns = found.directions.columns.double()
    for i, state in enumerate(states):
        net = mlp((FEATURES,), CLASSES, widths=(5,))
        net.load_state_dict(state)
        own = cross_entropy()(net(inputs), targets).item()
        assert path.true["train_loss"][i] == pytest.approx(own, rel=1e-5)
        away = torch.cat([p.detach().reshape(-1) for p in net.parameters()]).double() - origin
        inside = columns @ torch.from_numpy(path.coordinates[i])
        assert path.off_plane[i] == pytest.approx(float((away - inside).norm()), abs=1e-5)
        assert path.distance[i] == pytest.approx(float(away.norm()), abs=1e-5)
        assert float((columns.T @ (away - inside)).abs().max()) < 1e-4
        state_there = dict(
            zip(
                dict(net.named_parameters()),
                (origin + inside).float().split([p.numel() for p in net.parameters()]),
                strict=True,
            )
        )
        net.load_state_dict({name: part.view(net.state_dict()[name].shape) for name, part in state_there.items()})
        there = cross_entropy()(net(inputs), targets).item()
        assert path.on_plane["test_loss"][i] == pytest.approx(there, rel=1e-4)
    assert path.off_plane[-1] == pytest.approx(0, abs=1e-5)
    assert path.off_plane.max() > 0.01
    assert path.rows()[0]["checkpoint"] == "0"


def test_directions_that_are_not_orthogonal_give_the_nearest_point():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data.zero_()
    axes = Directions(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), ("a", "b"), "skew")
    data = torch.eye(2), torch.zeros(2, 1)
    found = plane(model, nn.MSELoss(), data, directions=axes, points=2)
    path = trajectory(found, model, [{"weight": torch.tensor([[3.0, 2.0]])}], nn.MSELoss(), data).trajectories[0]
    np.testing.assert_allclose(path.coordinates, [[1, 2]], atol=1e-9)
    assert path.off_plane[0] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="at least one checkpoint"):
        trajectory(found, model, [], nn.MSELoss(), data)
    with pytest.raises(ValueError, match="of another shape"):
        trajectory(found, model, [nn.Linear(3, 1, bias=False)], nn.MSELoss(), data)


def test_a_trajectory_is_refused_beside_another_network_s_landscape(tmp_path):
    data = points()
    model, first, second = (mlp((FEATURES,), CLASSES, widths=(4,), batchnorm=True) for _ in range(3))
    states = [first.state_dict(), second.state_dict()]
    made = [
        interpolation(model, first, second, cross_entropy(), data, points=3),
        curve(model, first, second, cross_entropy(), data, points=3, steps=2),
        plane(first, cross_entropy(), data, points=3),
    ]
    for found in made:
        kept = load(found.save(tmp_path / "x.safetensors"))
        assert kept.origin == found.origin
        with pytest.raises(ValueError, match=f"the {found.kind} was made around another network"):
            trajectory(kept, model, states, cross_entropy(), data)
        path = trajectory(kept, copy.deepcopy(first).double(), states, cross_entropy(), data, dtype=torch.float32)
        assert path.trajectories[0].off_plane[0] == pytest.approx(0, abs=1e-5)
    file = made[0].save(tmp_path / "older.safetensors")
    arrays, meta = read_tensors(file)
    file.write_bytes(tensor_bytes(arrays, {name: part for name, part in meta.items() if name != "origin"}))
    trajectory(load(file), model, states, cross_entropy(), data)  # a file that does not say
    moved: Any = copy.deepcopy(first)
    moved[2].running_mean.add_(1)
    with pytest.raises(ValueError, match="running statistics differ: give the network at 0"):
        trajectory(made[2], moved, states, cross_entropy(), data)
    trajectory(made[0], moved, states, cross_entropy(), data)  # where they are computed anew


def test_checkpoints_beside_a_curve_lie_at_its_nearest_points():
    data = points()
    first, second = (mlp((FEATURES,), CLASSES, widths=(4,)) for _ in range(2))
    bent = curve(first, first, second, cross_entropy(), data, points=5, steps=30, rate=0.05)
    space = torch.cat([p.detach().reshape(-1) for p in first.parameters()])
    middle = space + bent.directions.columns @ torch.tensor([0.25, 0.5])
    parts = middle.split([p.numel() for p in first.parameters()])
    between = {n: part.view(p.shape) for (n, p), part in zip(first.named_parameters(), parts, strict=True)}
    states = [first.state_dict(), between, second.state_dict()]
    (path,) = trajectory(bent, first, states, cross_entropy(), data).trajectories
    np.testing.assert_allclose(path.coordinates[:, 0], [0, 0.5, 1], atol=1e-4)
    assert path.off_plane == pytest.approx(0, abs=1e-3)
    np.testing.assert_allclose(path.on_plane["train_loss"], bent.values["train_loss"][::2], rtol=1e-4)


def test_a_curve_bends_around_what_the_straight_line_runs_into():
    data = points(60)
    first, second = (mlp((FEATURES,), CLASSES, widths=(8,), batchnorm=True) for _ in range(2))
    for net in (first, second):
        trained(net, data, 45)
    before = everything(first)
    straight = curve(first, first, second, cross_entropy(), data, steps=0, points=5)
    bent = curve(first, first, second, cross_entropy(), data, steps=60, rate=0.05, points=5)
    assert same(everything(first), before)
    whole = interpolation(first, first, second, cross_entropy(), data, span=(0, 1), points=5)
    np.testing.assert_allclose(straight.values["train_loss"], whole.values["train_loss"], rtol=1e-3)
    for end in (0, -1):
        assert bent.values["train_loss"][end] == pytest.approx(straight.values["train_loss"][end], rel=1e-4)
    assert bent.values["train_loss"].max() < straight.values["train_loss"].max()
    again = curve(first, first, second, cross_entropy(), data, steps=60, rate=0.05, points=5)
    assert np.array_equal(again.values["train_loss"], bent.values["train_loss"])
    with pytest.raises(ValueError, match="diverged"):
        curve(first, first, second, cross_entropy(), data, steps=60, rate=1e30, batchnorm="frozen")
    with pytest.raises(ValueError, match="2 points, 0 steps"):
        curve(first, first, second, cross_entropy(), data, points=1)


def test_a_linear_boundary_lies_where_its_equation_says(tmp_path, monkeypatch):
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.fill_(0.5)
    inputs = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0]])
    targets = torch.tensor([[1.0], [0.0], [0.0]])
    axis = Directions(torch.tensor([[1.0], [0.0], [0.0]]), ("w1",), "the first weight")
    found = decision_boundaries(
        model, (inputs, targets), loss=nn.BCEWithLogitsLoss(), direction=axis, offsets=wiggle(2.0, 3, 1), points=21
    )
    for frame, offset in enumerate((-2, 0, 2)):
        a, b = np.meshgrid(found.x, found.y, indexing="ij")
        side = (1 + offset) * a - 2 * b + 0.5
        clear = np.abs(side) > 1e-5
        assert np.array_equal(found.classes[frame][clear], (side > 0)[clear])
        assert found.accuracy[frame] == pytest.approx(
            np.mean(((1 + offset) * inputs[:, 0].numpy() - 2 * inputs[:, 1].numpy() + 0.5 > 0) == targets[:, 0].numpy())
        )
        sides = (1 + offset) * inputs[:, 0] - 2 * inputs[:, 1] + 0.5 > 0
        assert np.array_equal(found.right[frame], (sides == targets[:, 0].bool()).numpy())  # whatever the grid
    for ending in ("gif", "html"):
        write_boundaries(found, tmp_path / f"b.{ending}")
    with Image.open(tmp_path / "b.gif") as moving:
        assert getattr(moving, "n_frames", 1) == 4  # middle, end, middle, end; then it begins again
    assert (tmp_path / "b.html").read_text().count("data:image/png") == 3
    write_boundaries(found, tmp_path / "b.mp4")
    assert imageio_ffmpeg.count_frames_and_secs(tmp_path / "b.mp4")[0] == 4
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho no such encoder >&2\nexit 1\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    with pytest.raises(RuntimeError, match="could not write an MP4: no such encoder"):
        write_boundaries(found, tmp_path / "b.mp4")
    (tmp_path / "ffmpeg").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LookupError, match="needs ffmpeg"):
        write_boundaries(found, tmp_path / "b.mp4")
    with pytest.raises(ValueError, match="gif, mp4, html, png"):
        write_boundaries(found, tmp_path / "b.mov")
    with pytest.raises(ValueError, match="over two inputs"):
        decision_boundaries(model, (torch.zeros(3, 3), targets))
    with pytest.raises(ValueError, match="need a direction"):
        decision_boundaries(model, (inputs, targets), offsets=(0.1,))


def test_embeddings_keep_clusters_apart():
    draws = np.random.default_rng(0)
    rows = np.concatenate([draws.normal(size=(12, 40)), 30 + draws.normal(size=(12, 40))])
    flat = embedding(rows, method="pca")
    centred = rows - rows.mean(0)
    _, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=0), s[:2], rtol=1e-6)
    for places in (flat, embedding(rows, perplexity=5.0, seed=1)):
        a, b = places[:12], places[12:]
        within = max(np.ptp(a, 0).max(), np.ptp(b, 0).max())
        assert np.linalg.norm(a.mean(0) - b.mean(0)) > 0.5 * within
    nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
    assert weights_of(nets).shape == (2, 6)
    assert weights_of(nets, kernels=False).shape == (2, 8)
    with pytest.raises(ValueError, match="different kinds"):
        weights_of([nn.Linear(3, 2), nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="perplexity"):
        embedding(rows, perplexity=24.0)
    with pytest.raises(ValueError, match="at least 3 rows"):
        embedding(rows[:2])


def test_files_hold_what_was_found(walk, tmp_path):
    found = walk[2]
    for ending in ("pdf", "csv", "vtk", "npz", "safetensors"):
        assert write_landscape(found, tmp_path / f"x.{ending}").stat().st_size > 1000
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert len(rows) == 81
    assert float(rows[9 * 2 + 3]["train_loss"]) == found.values["train_loss"][2, 3]
    with np.load(tmp_path / "x.npz") as arrays:
        assert np.array_equal(arrays["test_accuracy"], found.values["test_accuracy"])
        assert json.loads(str(arrays["facts"]))["train samples"] == "all 23"
    again = load(tmp_path / "x.safetensors")
    assert np.array_equal(again.trajectories[0].true["train_loss"], found.trajectories[0].true["train_loss"])
    lines = (tmp_path / "x.vtk").read_text().splitlines()
    assert lines[4:6] == ["DIMENSIONS 9 9 1", "POINTS 81 double"]
    x, y, _ = map(float, lines[6 + 9 * 3 + 2].split())  # the first axis runs fastest
    assert (x, y) == (found.axes[0][2], found.axes[1][3])
    at = lines.index("SCALARS train_loss double 1") + 2
    assert float(lines[at + 9 * 3 + 2]) == found.values["train_loss"][2, 3]
    with pytest.raises(ValueError, match=r"html, svg, pdf, png, csv, vtk, npz, safetensors, not x\.txt"):
        write_landscape(found, tmp_path / "x.txt")
    with pytest.raises(ValueError, match="no values 'loss'"):
        write_landscape(found, tmp_path / "x.svg", name="loss")


def test_the_page_needs_nothing_else_and_runs_its_own_scripts_alone(walk):
    page = landscape_html(walk[2])
    assert "unsafe-eval" not in page
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="https?:', outside)
    (text,) = re.findall(r'id="landscape-data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(text)
    assert np.array_equal(data["values"]["train_loss"], walk[2].values["train_loss"])
    assert data["paths"][0]["off_plane"] == walk[2].trajectories[0].off_plane.tolist()


def test_gaps_are_drawn_as_gaps_and_counted(tmp_path):
    model, data = mlp((FEATURES,), CLASSES, widths=(4,)), points()
    found = plane(model, cross_entropy(), data, points=20, folder=tmp_path / "chunks", shard=(0, 2))
    assert found.count(MISSING) == 400 - 256
    values = found.values["train_loss"]
    values[0, 0] = np.inf
    found.status[0, 0] = 0
    page = landscape_html(found)
    assert '"inf"' in page
    assert '"nan"' in page
    assert "1 points are NaN or infinite and drawn as gaps" in page
    for ending in ("csv", "vtk"):
        write_landscape(found, tmp_path / f"x.{ending}")
    assert "not computed yet" in (tmp_path / "x.csv").read_text()
    values[:] = np.nan
    assert "No point of the landscape has a finite train loss" in landscape_html(found)
    with pytest.raises(ValueError, match="nothing to draw"):
        write_landscape(found, tmp_path / "x.svg")


def test_trajectories_beside_lines_are_drawn(walk, tmp_path):
    model, states, _ = walk
    data = points()
    found = line(model, cross_entropy(), data, data, direction=trajectory_axes(model, states, count=1), points=5)
    for name in ("training <b>", "again"):
        found = trajectory(found, model, states, cross_entropy(), data, data, name=name)
    path = found.trajectories[0]
    loss, accuracy, apart = lines_figure(found).panels
    for panel, what in ((loss, "loss"), (accuracy, "accuracy")):
        assert len(panel.series) == 2 + 4
        for series, name in ((panel.series[2], f"train_{what}"), (panel.series[4], f"test_{what}")):
            assert np.array_equal(series.x, path.coordinates[:, 0])
            assert np.array_equal(series.y, path.true[name])
            assert f"{path.off_plane[1]:.4g} off the line, which has {path.on_plane[name][1]:.4g}" in str(series.hover)
    assert np.array_equal(apart.series[0].y, path.off_plane)
    assert f"up to {path.off_plane.max():.4g} off it" in lines_figure(found).finding
    page = landscape_html(found)
    assert "<summary>training &lt;b&gt;</summary>" in page
    (text,) = re.findall(r'id="landscape-data">(.*?)</script>', page, re.DOTALL)
    shown = json.loads(text)["dark"][0]["data"]
    assert f"{path.off_plane[1]:.4g} off the line" in shown[2]["text"][1]


def test_a_trajectory_without_test_values_is_drawn_where_it_has_some(walk, tmp_path):
    model, states, found = walk
    data = points()
    flat = replace(found, trajectories=())
    straight = line(model, cross_entropy(), data, data, points=5)
    ours = [trajectory(draw, model, states, cross_entropy(), data) for draw in (flat, straight)]
    for walked in ours:
        for ending in ("svg", "html"):
            assert write_landscape(walked, tmp_path / f"x.{ending}", name="test_loss").stat().st_size > 1000
    assert [len(panel.series) for panel in lines_figure(ours[1]).panels] == [3, 3, 1]


def test_npz_holds_trajectories_whole(walk, tmp_path):
    found = walk[2].with_trajectory(walk[2].trajectories[0])
    with np.load(write_landscape(found, tmp_path / "x.npz")) as arrays:
        for number, path in enumerate(found.trajectories):
            for name in ("coordinates", "off_plane", "distance"):
                assert np.array_equal(arrays[f"trajectory {number}: {name}"], getattr(path, name))
            for name in path.true:
                assert np.array_equal(arrays[f"trajectory {number}: true {name}"], path.true[name])
                assert np.array_equal(arrays[f"trajectory {number}: on_plane {name}"], path.on_plane[name])
        paths = json.loads(str(arrays["facts"]))["trajectories"]
    assert paths == [{"name": "trajectory", "checkpoints": list(walk[2].trajectories[0].names)}] * 2


def test_lines_are_drawn_as_figures(tmp_path):
    model, data = mlp((FEATURES,), CLASSES, widths=(4,)), points()
    found = line(model, cross_entropy(), data, data, points=5, samples=15)
    assert write_landscape(found, tmp_path / "x.png", width=3.25).stat().st_size > 1000
    assert "random direction 1" in write_landscape(found, tmp_path / "x.html").read_text()
    with pytest.raises(ValueError, match="VTK holds surfaces"):
        write_landscape(found, tmp_path / "x.vtk")


def test_name_and_log_hold_for_pages_and_for_paraview(walk, tmp_path):
    found = walk[2]
    (text,) = re.findall(r'id="landscape-data">(.*?)</script>', landscape_html(found, name="test_accuracy", log=False))
    assert [json.loads(text)[name] for name in ("name", "log")] == ["test_accuracy", False]
    page = write_landscape(found, tmp_path / "x.html", name="test_loss").read_text()
    assert "Test loss on a plane" in page[page.index("<svg") :]
    heights = {}
    for name, log in (("test_loss", True), ("test_loss", False), ("test_accuracy", True), ("test_accuracy", False)):
        lines = write_landscape(found, tmp_path / "x.vtk", name=name, log=log).read_text().splitlines()
        assert lines[1] == f"Landscope: {name.replace('_', ' ')} on a plane"
        heights[name, log] = np.array([float(line.split()[2]) for line in lines[6 : 6 + 81]]).reshape(9, 9).T
        values = found.values[name]
        drawn = np.log10(values) if log and name == "test_loss" else values
        np.testing.assert_allclose(heights[name, log], 4 * (drawn - drawn.min()) / np.ptp(drawn), atol=1e-9)
    for ending in ("html", "vtk", "svg"):
        with pytest.raises(ValueError, match="no values 'loss'; it has train_loss"):
            write_landscape(found, tmp_path / f"x.{ending}", name="loss")
        with pytest.raises(ValueError, match="cap=0 has no logarithm: give a cap above 0"):
            write_landscape(found, tmp_path / f"x.{ending}", cap=0)


@pytest.mark.parametrize("draw", [plane, line])
def test_what_is_not_computed_yet_is_said_and_written(draw, tmp_path):
    model, data = mlp((FEATURES,), CLASSES, widths=(4,)), points()
    found = draw(model, cross_entropy(), data, points=3, folder=tmp_path / "chunks", shard=(1, 2))
    assert found.count(MISSING) == found.status.size
    with pytest.raises(ValueError, match=f"none of the {found.status.size} points is computed yet.*without shard="):
        write_landscape(found, tmp_path / "x.svg")
    for ending in ("html", "csv", "npz", "safetensors", *(("vtk",) if draw is plane else ())):
        assert write_landscape(found, tmp_path / f"x.{ending}").stat().st_size > 100
    assert "points is computed yet" in (tmp_path / "x.html").read_text()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network's factory and its checkpoints."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "walked.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Linear(64, 10))\n"
    )
    with seeded(0):
        for i in range(3):
            save_model(nn.Sequential(nn.Linear(64, 10)), str(folder / f"s{i}.safetensors"))
        save_model(nn.Sequential(nn.Linear(64, 9)), str(folder / "other.safetensors"))
    return folder


def ask(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    fixed = ("--model", "walked:make", "--data", "digits", "--points", "3", "--samples", "100")
    return CliRunner().invoke(app, ["landscape", *words, *fixed])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("s0.safetensors",), "plane of 3×3 points"),
        (("s0.safetensors", "--plane", "eigen", "--out", "e.csv"), "eigenvectors 1, 2 of the Hessian"),
        (("s0.safetensors", "s1.safetensors", "s2.safetensors", "--plane", "pca", "--out", "p.svg"), "3 checkpoints"),
        (("s0.safetensors", "s1.safetensors", "--plane", "between", "--out", "b.csv"), "interpolation of 3 points"),
        (("s0.safetensors", "s1.safetensors", "s2.safetensors", "--plane", "between", "--out", "c.npz"), "2 others"),
    ],
)
def test_the_command_draws(checkpoints, monkeypatch, words, said):
    done = ask(checkpoints, monkeypatch, *words)
    assert done.exit_code == 0, done.output
    assert said in done.output
    assert "100 of 1,257" in done.output
    written = re.findall(r"Written: (\S+)", done.output)
    assert [os.path.exists(path) for path in written] == [True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("s0.safetensors", "--plane", "pca"), "at least 3 checkpoints"),
        (("s0.safetensors", "--plane", "between"), "2 checkpoints (a line) or 3"),
        (("s0.safetensors", "--plane", "sideways"), "random, eigen, pca, between"),
        (("other.safetensors",), "[9, 64] in the file, [10, 64] in the model"),
        (("s9.safetensors",), "there is no checkpoint"),
        (("s0.safetensors", "--shard", "1of2"), "i/n"),
        (("s9.safetensors", "--out", "a.txt"), "--out a.txt: a plane is written as html"),
        (("s9.safetensors", "--out", "a.csv", "--out", "walked.py/b.csv"), "is no place for a file"),
        (("s8.safetensors", "s9.safetensors", "--plane", "between", "--out", "a.vtk"), "a line is written as"),
        (("s0.safetensors", "--plane", "eigen", "--normalisation", "nonsense"), "filter, layer, model, none"),
    ],
)
def test_the_command_says_what_cannot_be(checkpoints, monkeypatch, words, said):
    done = ask(checkpoints, monkeypatch, *words)
    assert done.exit_code == 2
    assert said in done.stderr


def test_shards_write_nothing_until_they_are_put_together(checkpoints, monkeypatch, tmp_path):
    states = [f"s{i}.safetensors" for i in range(3)]
    words = (*states, "--plane", "pca", "--out", str(tmp_path / "x.csv"), "--runs", str(tmp_path / "runs"))
    for shard in ("1/3", "2/3"):  # the one chunk is another's
        done = ask(checkpoints, monkeypatch, *words, "--shard", shard)
        assert done.exit_code == 0, done.output
        assert "Nothing is written yet: 9 of 9 points are left to other shards" in done.output
        assert "without --shard puts them together and writes" in done.output
        assert not (tmp_path / "x.csv").exists()
    done = ask(checkpoints, monkeypatch, *words, "--shard", "0/3")  # nothing is missing any more
    assert "Written: " in done.output
    assert "not computed yet" not in (tmp_path / "x.csv").read_text()


@pytest.mark.docs
def test_the_page_of_the_documentation_computes_what_it_says(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (root / "docs/landscapes.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for source in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(source, "landscapes.md", "exec"), found)  # noqa: S102 - our own page
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(re.findall(r'"([\w-]+\.(?:svg|html|gif))"', page))
    assert found["walked"].trajectories[0].off_plane.max() > 0
    assert found["bent"].values["train_loss"].max() < found["straight"].values["train_loss"][20:61].max()
    assert "of the way" in capsys.readouterr().out
