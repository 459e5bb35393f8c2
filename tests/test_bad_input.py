"""What a user can get wrong: one clear line, exit code 2, no traceback, nothing lost and nothing trained."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from commands import NAME, SMOKE, content, environment, landscope, refused
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from landscope import own
from landscope.cli import app

ESCAPES = "\x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07link\x1b]8;;\x07 [red]markup[/red]\r\b\u202e"


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return commands.shared_store(tmp_path_factory)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a good factory and a good checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    Path("network.py").write_text(FACTORIES)
    monkeypatch.delitem(sys.modules, "network", raising=False)
    save_file({"weight": torch.ones(10, 64), "bias": torch.zeros(10)}, "good.safetensors")
    yield tmp_path
    sys.modules.pop("network", None)


FACTORIES = """
import sys, torch
def make(): return torch.nn.Linear(64, 10)
def narrow(): return torch.nn.Linear(64, 3)
def small(): return torch.nn.Linear(5, 10)
def tied():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    model[1].weight = model[0].weight
    return model
class Bare(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(10, 64))
    def forward(self, x): return x @ self.scale.T
class Pair(torch.nn.Linear):
    def __init__(self): super().__init__(64, 10)
    def forward(self, x): return (super().forward(x),)
def raises(): raise RuntimeError("no\\nsuch thing")
def leaves(): sys.exit(0)
def number(): return 3
def needs(width): return torch.nn.Linear(width, 10)
constant = 3
module = torch.nn.Linear(64, 10)
"""


def invoke(*words: object, code: int = 2) -> str:
    """The message of a command that is refused, in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("landscope: ")
    assert "Traceback" not in result.output
    return lines[0]


def measured(checkpoint: object = "good.safetensors", model: str = "network:make", data: object = "digits") -> str:
    return invoke("measure", checkpoint, "--model", model, "--data", data, "--measures", "performance")


# --- names and numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("johannsen2026_batchsize", "--scale", "smoke"), ("'johannsen2026_batchsize'", f"did you mean '{NAME}'")),
        ((NAME, "--scale", "laptp"), ("'laptp'", "did you mean 'laptop'", "smoke, laptop, paper")),
        ((*SMOKE, "--data", "digit"), ("'digit'", "did you mean 'digits'")),
        ((*SMOKE, "--data", "noisy_polynomial"), ("trains classifiers", "noisy_polynomial")),
        ((NAME, "--scale", "paper", "--data", "digits"), ("no images", "cifar10")),
        ((*SMOKE, "--seeds", "0"), ("not 0", "2 are planned")),
        ((*SMOKE, "--seeds", "-3"), ("not -3",)),
        ((*SMOKE, "--seeds", "20000"), ("10,000 seeds", "not 20,000")),
        ((*SMOKE, "--device", "cuda:99"), ("--device cuda:99", "there is cpu")),
        ((*SMOKE, "--device", "abacus"), ("--device abacus", "there is cpu")),
        ((*SMOKE, "--jobs", "0"), ("--jobs 0",)),
        ((*SMOKE, "--jobs", "-1"), ("--jobs -1",)),
    ],
    ids=lambda part: " ".join(part)[-40:],
)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_wrong_names_and_numbers(verb, words, said, tmp_path):
    message = invoke(verb, *words, "--runs", tmp_path / "runs")
    for part in said:
        assert part in message
    assert not list(tmp_path.glob("runs/plans"))
    assert not list(tmp_path.glob("runs/*/spec.json"))


@pytest.mark.parametrize("verb", [("run", *SMOKE), ("rank",)])
def test_a_report_that_could_not_be_written_is_refused_at_once(verb, tmp_path):
    (tmp_path / "runs").mkdir()
    message = invoke(*verb, "--runs", tmp_path / "runs", "--out", tmp_path)
    assert f"--out {tmp_path} is no place for a file" in message
    assert not list((tmp_path / "runs").iterdir())


def test_nothing_is_left_behind_by_a_misspelt_name(tmp_path):
    invoke("run", "johanssen", "--runs", tmp_path / "runs")
    invoke("run", *SMOKE, "--jobs", "0", "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(tmp_path):
    done = landscope("run", NAME, "--scale", "smok", "--runs", tmp_path / "runs", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "did you mean 'smoke'" in done.stderr


@pytest.mark.parametrize("words", [("run",), ("run", NAME, "--scala", "smoke"), ("measure", "x"), ("nothing",)])
def test_wrong_usage_is_exit_code_2(words):
    assert CliRunner().invoke(app, list(words)).exit_code == 2


# --- stores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [("status",), ("sql", "select 1"), ("report", *SMOKE), ("export", *SMOKE, "--to", "out")],
    ids=lambda words: words[0],
)
def test_a_missing_store(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no store at nowhere" in invoke(*words, "--runs", "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_store_that_holds_something_else(store, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds nothing of" in invoke("report", *SMOKE, "--runs", tmp_path / "empty")
    assert "(there is digits)" in invoke("report", *SMOKE, "--runs", store, "--data", "breast_cancer")
    assert "at scale laptop" in invoke("report", NAME, "--runs", store)
    assert "no experiment is called" in invoke("export", "johansen", "--runs", store, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_store_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("mine")
    assert "cannot be written to" in invoke("run", *SMOKE, "--runs", tmp_path / "runs")
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_query_that_fails_and_one_that_reaches_out(store):
    assert "there are runs(" in invoke("sql", "select nothing from measured", "--runs", store)
    assert "failed" in invoke("sql", "select * from read_csv('/etc/passwd')", "--runs", store)
    assert "the query is empty" in invoke("sql", "", "--runs", store)
    assert "failed" in invoke("sql", f"copy (select 1) to '{store}/x.csv'", "--runs", store)
    assert not (store / "x.csv").exists()


def test_a_read_only_store_can_be_read_and_not_run(store, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a folder read-only")
    told = {
        "status": ("status", "--runs", "ro"),
        "report": ("report", *SMOKE, "--runs", "ro", "--json"),
        "sql": ("sql", "select count(*) from runs", "--runs", "ro"),
        "inside": ("report", *SMOKE, "--runs", "ro"),  # without --out it goes into the store: refused
        "run": ("run", *SMOKE, "--runs", "ro", "--seeds", 3),
    }
    shutil.copytree(store, tmp_path / "store")
    before = content(tmp_path / "store", machine=True)
    script = 'mkdir ro && mount --bind store ro && mount -o remount,ro,bind ro && exec "$0" -c "$1" "$2"'
    mounted = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, ONE_BY_ONE, json.dumps(told)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode != 0:
        assert "Traceback" not in mounted.stderr, mounted.stderr
        pytest.skip(f"no private mounts here: {mounted.stderr.strip()}")
    done = json.loads(mounted.stdout)
    codes = {word: code for word, (code, _, _) in done.items()}
    complaints = {word: complaint for word, (_, _, complaint) in done.items()}
    assert codes == dict.fromkeys(told, 0) | {"inside": 2, "run": 2}, complaints
    assert "the store ro cannot be written to" in complaints["run"]
    assert "--out" in complaints["inside"]
    assert all("Traceback" not in complaint for complaint in complaints.values())
    assert json.loads(done["report"][1])["claims"]
    assert content(tmp_path / "store", machine=True) == before


ONE_BY_ONE = """
import json, sys
from typer.testing import CliRunner
from landscope import render
from landscope.cli import app
render.svg = lambda figure: "<svg></svg>"  # drawing takes most of a page's time
done = {}
for name, words in json.loads(sys.argv[1]).items():
    result = CliRunner().invoke(app, [str(word) for word in words])
    done[name] = result.exit_code, result.stdout, result.stderr
print(json.dumps(done))
"""


# --- data ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_data_set(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/notes.txt").write_text("nothing")
    message = invoke("run", *SMOKE, "--data", tmp_path / "data", "--runs", tmp_path / "runs")
    assert "holds no data set" in message
    assert "train-00000-of-00001.parquet" in message


def pictures(folder: Path, labels: dict[str, list[int | None]], classes: int | None = 4) -> Path:
    """A folder as the hub lays it out, of 8x8 colour noise."""
    import io

    from datasets import ClassLabel, Dataset, Features, Image, Value
    from PIL import Image as Pictures

    random = np.random.default_rng(0)
    label = Value("int64") if classes is None else ClassLabel(names=[f"c{i}" for i in range(classes)])

    def png() -> dict[str, object]:
        file = io.BytesIO()
        Pictures.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    folder.mkdir()
    for split, values in labels.items():
        features = Features({"img": Image(), "label": label})
        made = Dataset.from_dict({"img": [png() for _ in values], "label": values}, features)
        made.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


def test_labels_outside_the_classes(tmp_path):
    folder = pictures(tmp_path / "data", {"train": [0, 1, 2] * 20, "test": [0, 1, 7]}, classes=None)
    message = invoke("plan", *SMOKE, "--data", folder, "--runs", tmp_path / "runs")
    assert "7" in message
    assert "label" in message


def test_empty_data(tmp_path):
    folder = pictures(tmp_path / "data", {"train": [], "test": []})
    invoke("plan", *SMOKE, "--data", folder, "--runs", tmp_path / "runs")


def test_plan_at_paper_scale_on_a_folder(tmp_path):
    """Only pictures enough for the paper's sizes are missing: that is said, before anything is trained."""
    folder = pictures(tmp_path / "cifar10", {"train": [0, 1, 2, 3] * 20, "test": [0, 1, 2, 3] * 5})
    message = invoke("plan", NAME, "--scale", "paper", "--data", folder, "--runs", tmp_path / "runs")
    assert "50,000" in message
    assert not list(tmp_path.glob("runs/*/spec.json"))


def test_nan_in_a_users_tensors():
    inputs, targets = torch.randn(20, 64), torch.arange(20) % 10
    inputs[3, 5] = float("nan")
    import landscope

    with pytest.raises(ValueError, match="NaN or infinity, first in row 3"):
        landscope.measure(nn.Linear(64, 10), nn.CrossEntropyLoss(), train=(inputs, targets))
    with pytest.raises(ValueError, match="empty"):
        landscope.measure(nn.Linear(64, 10), nn.CrossEntropyLoss(), train=[])
    with pytest.raises(LookupError, match="did you mean 'performance'"):
        landscope.measure(nn.Linear(64, 10), nn.CrossEntropyLoss(), train=(inputs, targets), measures=["perfomance"])


# --- checkpoints --------------------------------------------------------------------------------------------------


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickle_checkpoints_are_refused_unread(here):
    for name, save in (
        ("zip.pt", lambda x, p: torch.save(x, p)),
        ("old.pt", lambda x, p: torch.save(x, p, _use_new_zipfile_serialization=False)),
        ("p2.pkl", lambda x, p: p.write_bytes(pickle.dumps(x, 2))),
        ("p5.pkl", lambda x, p: p.write_bytes(pickle.dumps(x, 5))),
        ("disguised.safetensors", lambda x, p: p.write_bytes(pickle.dumps(x, 4))),
    ):
        save(Canary(here / "canary"), here / name)
        message = measured(name)
        assert "pickle checkpoint" in message
        assert "can run any code" in message
        assert "safetensors" in message
    (here / "p0.pkl").write_bytes(pickle.dumps(Canary(here / "canary"), 0))
    assert "not a safetensors file" in measured("p0.pkl")
    assert not (here / "canary").exists()


def header(text: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ONE = b'{"weight":{"dtype":"F32","shape":[%s],"data_offsets":[0,%d]}}'
BROKEN = {
    "empty": b"",
    "short": b"\x01\x02",
    "text": b"this is certainly no checkpoint at all",
    "truncated": None,
    "huge header": header(b"{}", length=2**62),
    "long header": header(b"{}" + b" " * 100, length=10**9),
    "header is no JSON": header(b"{]"),
    "header is a list": header(b"[1, 2]"),
    "no tensors": header(b"{}"),
    "offsets beyond the end": header(ONE % (b"4", 16), b"\0" * 8),
    "shape overflows": header(ONE % (b"4294967296,4294967296,4294967296", 4), b"\0" * 4),
    "shape and size differ": header(ONE % (b"5", 16), b"\0" * 16),
    "unknown dtype": header(ONE.replace(b"F32", b"Q99") % (b"4", 16), b"\0" * 16),
    "deep": header(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_checkpoints_are_refused_at_once(here, kind):
    data = BROKEN[kind]
    Path("broken.safetensors").write_bytes(Path("good.safetensors").read_bytes()[:-100] if data is None else data)
    began = time.monotonic()
    message = measured("broken.safetensors")
    assert "broken.safetensors" in message
    assert ("git lfs pull" in message) == (kind == "pointer")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "missing", "dangling"])
def test_what_is_no_file_is_refused_at_once(here, kind):
    path = Path("given.safetensors")
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nowhere")
    done = landscope("measure", path, "--model", "network:make", "--data", "digits", cwd=here, timeout=30)
    refused(done, "given.safetensors", "there is no checkpoint" if kind == "missing" else "not a regular file")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_that_are_not_finite(here, dtype, value):
    weight = torch.ones(10, 64).to(dtype)
    weight[2, 3] = torch.tensor(value).to(dtype)
    if dtype is torch.float8_e4m3fn and value == float("inf"):
        pytest.skip("this type has no infinity")
    save_file({"weight": weight, "bias": torch.zeros(10)}, "bad.safetensors")
    message = measured("bad.safetensors")
    assert "'weight'" in message
    assert "NaN or infinity" in message


def test_complex_weights(here):
    save_file({"weight": torch.ones(10, 64, dtype=torch.complex64), "bias": torch.zeros(10)}, "bad.safetensors")
    assert "complex" in measured("bad.safetensors")


def test_a_state_dict_that_does_not_fit_names_keys_and_shapes(here):
    save_file({"weight": torch.ones(10, 63), "extra": torch.zeros(3)}, "other.safetensors")
    message = measured("other.safetensors")
    for part in ("lacks bias", "no extra", "weight is [10, 63] in the file, [10, 64] in the model"):
        assert part in message
    save_file({f"../../layer{i}": torch.zeros(1) for i in range(50)}, "many.safetensors")
    message = measured("many.safetensors")
    assert "and 46 more" in message
    assert len(message) < 600


def test_tied_weights_may_be_left_out():
    file = Path("x.safetensors")
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = {name: torch.ones_like(t) for name, t in model.state_dict().items() if name != "1.weight"}
    own.load_into(model, state, file)
    assert torch.equal(model.state_dict()["1.weight"], torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"lacks 0\.bias"):
        own.load_into(model, {n: t for n, t in state.items() if n != "0.bias"}, file)


# --- factories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("network", "package.module:factory"),
        ("network:", "package.module:factory"),
        (":make", "package.module:factory"),
        ("../network:make", "package.module:factory"),
        (".network:make", "package.module:factory"),
        ("network:make()", "package.module:factory"),
        ("networks:make", "cannot import 'networks'"),
        ("network:mak", "did you mean 'make'"),
        ("network:raises", "the factory raised RuntimeError: no such thing"),
        ("network:leaves", "the factory raised SystemExit"),
        ("network:needs", "called without arguments"),
        ("network:number", "returned an int, not a torch.nn.Module"),
        ("network:constant", "is an int, not a function"),
        ("network:module", "is a Linear, not a function"),
        ("network:Pair", "gives a tuple for 2 samples"),
    ],
)
def test_factories(here, model, said):
    assert said in measured(model=model)


@pytest.mark.parametrize("text", ["1 +", "raise RuntimeError('mine')", "import nowhere", "import sys; sys.exit()"])
def test_a_module_that_cannot_be_imported(here, text):
    Path("broken_network.py").write_text(text)
    message = measured(model="broken_network:make")
    assert "--model broken_network:make" in message
    assert ("cannot import 'nowhere'" in message) == ("nowhere" in text)


def test_networks_that_do_not_fit_the_data(here):
    save_file({"weight": torch.ones(3, 64), "bias": torch.zeros(3)}, "narrow.safetensors")
    assert "shape [2, 3] for 2 samples; digits needs a tensor of shape [2, 10]" in measured(
        "narrow.safetensors", "network:narrow"
    )
    save_file({"weight": torch.ones(10, 5), "bias": torch.zeros(10)}, "small.safetensors")
    assert "does not take the inputs of digits, of shape [64]" in measured("small.safetensors", "network:small")


def test_a_network_without_parameters(here):
    save_file({"scale": torch.ones(10, 64)}, "bare.safetensors")
    message = invoke("measure", "bare.safetensors", "--model", "network:Bare", "--data", "digits")
    assert "no parameters" in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--measures", "top_eigenvalue"), "did you mean 'top_eigenvalues'"),
        (("--loss", "hinge"), "cross_entropy or squared_error"),
        (("--train", "0"), "--train"),
        (("--train", "-5"), "--train"),
        (("--train", "100000"), "100,000"),
        (("--seed", "-1"), "--seed"),
        (("--data", "digts"), "did you mean 'digits'"),
        (("--device", "abacus"), "--device abacus"),
        (("--out", "good.safetensors/x.html"), "good.safetensors"),
    ],
    ids=lambda part: part if isinstance(part, str) else " ".join(part),
)
def test_measure_options(here, words, said):
    message = invoke("measure", "good.safetensors", "--model", "network:make", "--data", "digits", *words)
    assert said in message
    assert not list(here.glob("*.html"))


# --- terminals ----------------------------------------------------------------------------------------------------


def harmless(text: str) -> None:
    for character in ("\x1b", "\x07", "\r", "\b", "\u202e"):
        assert character not in text


def test_escape_sequences_in_names_are_shown_not_obeyed(here):
    for words in (
        ("run", ESCAPES),
        ("run", NAME, "--scale", ESCAPES),
        ("run", *SMOKE, "--data", ESCAPES),
        ("run", *SMOKE, "--device", ESCAPES),
        ("status", "--runs", ESCAPES),
        ("measure", ESCAPES, "--model", "a:b", "--data", "digits"),
        ("measure", "good.safetensors", "--model", f"network:{ESCAPES}", "--data", "digits"),
    ):
        harmless(invoke(*words))
    save_file({ESCAPES: torch.zeros(2)}, "evil.safetensors")
    message = measured("evil.safetensors")
    harmless(message)
    assert r"\x1b[31mred" in message
    assert "[red]markup[/red]" in message


def test_escape_sequences_in_a_store_are_shown_not_obeyed(tmp_path):
    from landscope import store as stores

    source = {"name": ESCAPES}
    stores.declare(tmp_path, {"experiment": ESCAPES, "scale": ESCAPES, "data": source}, {"claims": {}})
    done = landscope("status", "--runs", tmp_path)
    assert done.returncode == 0
    harmless(done.stdout)
    assert r"\x1b" in done.stdout
    done = landscope("sql", "select chr(27) || '[31m' as a, '[red]x[/red]' as b", "--runs", tmp_path)
    harmless(done.stdout)
    assert "[red]x[/red]" in done.stdout
