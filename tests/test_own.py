"""Measuring a network of one's own from Python, and what its display may contain."""

import ast
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pictures
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import landscope
from landscope import measures, own
from landscope.cli import app
from landscope.engine import find_measures
from landscope.linalg.progress import Progress, listening
from landscope.own import facts
from landscope.report import measures_html
from landscope.report.quantities import quantities, rough
from landscope.spec import call
from landscope.types import Batches, Estimate


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(40, 5), torch.arange(40) % 3


def test_no_measure_is_named_like_a_file_of_the_package():
    """Importing the file would put the module in the function's place."""
    folder = Path(measures.__file__).parent
    files = {path.stem for path in folder.glob("*.py")}
    assert not files & set(measures.names())


def test_measures_can_be_asked_for_again_and_again(data):
    torch.manual_seed(1)
    model = nn.Linear(5, 3)
    first, second = (
        landscope.measure(model, nn.CrossEntropyLoss(), train=data, measures=["performance"]) for _ in range(2)
    )
    assert first.rows() == second.rows()
    values = {row["name"]: row["value"] for row in first.rows()}
    assert values["train_loss"] == pytest.approx(float(nn.functional.cross_entropy(model(data[0]), data[1]).detach()))
    right = (model(data[0]).argmax(1) == data[1]).float().mean()
    assert values["train_accuracy"] == pytest.approx(float(right))


def test_measuring_leaves_the_network_as_it_was(data):
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model.train()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    chosen = ["outcomes", "top_eigenvalues", "weight_perturbation"]  # test_measures.py has all of them, one by one
    landscope.measure(model, nn.CrossEntropyLoss(), train=data, test=data, measures=chosen)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_every_measure_has_a_first_line_and_settings_by_keyword():
    folder = Path(measures.__file__).parent
    for path in folder.glob("[!_]*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name in measures.names():
                assert [a.arg for a in (*node.args.posonlyargs, *node.args.args)] == ["snapshot"]
                assert measures.names()[node.name].endswith(".")


# --- from a checkpoint ---------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with factories; ``measured`` saves the network of one and measures it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(FACTORIES)
    yield tmp_path
    sys.modules.pop("mine", None)


FACTORIES = """
import torch
from torch import nn
def digits(): return nn.Linear(64, 10)
def rolls(): return nn.Linear(2, 2)
def images(): return nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
def soft(): return nn.Sequential(nn.Linear(64, 10), nn.Softmax(1))
"""


def state(factory: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return own.build(f"mine:{factory}").state_dict()


def measured(factory: str, *words: object, code: int = 0, **tensors: torch.Tensor) -> tuple[str, str]:
    """What is printed, on one line, and the page."""
    save_file(tensors or state(factory), "mine.safetensors")
    result = CliRunner().invoke(app, ["measure", "mine.safetensors", "--model", f"mine:{factory}", *map(str, words)])
    assert result.exit_code == code, (result.output, result.exception)
    page = Path("mine.html").read_text() if code == 0 else ""
    return " ".join((result.output if code == 0 else result.stderr).split()), page


def test_accuracies_have_the_sampling_error_of_their_examples(here):
    said, page = measured("digits", "--data", "digits", "--measures", "performance")
    found = re.search(r"test_accuracy ([\d.]+) ± ([\d.]+) \(n=360\)", said)
    assert found is not None, said
    p = float(found[1])
    assert 0 < p < 1
    assert float(found[2]) == pytest.approx(math.sqrt(p * (1 - p) / 360), rel=0.05)
    assert re.search(rf"generalization_gap -?[\d.e-]+ ± {re.escape(found[2])} \(n=360\)", said)
    assert "valid_accuracy" in said
    for name in ("train_accuracy", "train_loss"):  # of its own set it is
        assert re.search(rf"{name} [\d.]+ \(exact\)", said)
    losses = re.search(r"test_loss [\d.]+ ± ([\d.]+) \(n=360\)", said)
    assert losses is not None, said
    assert re.search(rf"loss_gap -?[\d.e-]+ ± {re.escape(losses[1])} \(n=360\)", said)
    assert re.search(r"valid_loss [\d.]+ ± [\d.]+ \(n=\d+\)", said)
    for place in (said, page):
        assert "sampling error of the validation or test examples" in place
        assert "the standard deviation of their losses over sqrt(n)" in place


def test_an_accuracy_of_one_is_not_called_exact_and_few_errors_have_no_interval():
    sets = landscope.data.digits(0)
    for right, kind in ((360, float), (358, Estimate), (0, float)):
        given = {"train_accuracy": 1.0, "test_accuracy": right / 360, "generalization_gap": 1 - right / 360}
        shown = own.sampled({"performance": given}, sets)["performance"]
        assert isinstance(shown["test_accuracy"], kind)
        assert isinstance(shown["generalization_gap"], kind)
        assert isinstance(shown["train_accuracy"], float)
    few = own.sampled({"performance": {"train_accuracy": 1.0, "test_accuracy": 358 / 360}}, sets)
    assert few["performance"]["test_accuracy"].freedom == 0  # 0.9944 ± 0.0039 would reach beyond 1


def test_the_top_eigenvalue_stands_with_its_residual(here):
    said, page = measured("digits", "--data", "digits", "--measures", "top_eigenvalues")
    beside = re.search(r"top_eigenvalue [\d.]+ \(residual ([\d.e-]+)\)", said)
    assert beside is not None, said
    assert f"within {rough(float(beside[1]))}" in page
    assert "not converged" not in said + page
    unfinished = {"top_eigenvalue": 2.0, "top_eigenvalue_residual": 0.5, "top_eigenvalue_converged": 0.0}
    assert facts.shown(quantities(unfinished)["top_eigenvalue"]) == "2 (residual 0.5, not converged)"
    assert "within 0.5, not converged" in measures_html("n", {}, {"top_eigenvalues": unfinished})


def test_it_is_said_that_the_seed_is_that_of_the_training(here):
    for factory, data, note in (
        ("digits", "digits", "the split of digits that seed 7 draws: --seed must be the one used in training"),
        ("rolls", "swiss_roll", "drawn by seed 7: --seed must be the one used in training"),
    ):
        said, page = measured(factory, "--data", data, "--measures", "performance", "--seed", 7)
        assert note in said
        assert note in page
        assert ("samples seen in training" in said) == (data == "digits")


def test_a_test_split_of_the_sets_own_needs_no_seed(here):
    folder = pictures.folder(here)
    said, page = measured("images", "--data", folder, "--measures", "performance")
    for place in (said, page):
        assert "all 60 training samples, and the test split that set comes with, whatever the seed" in place
        assert "must be the one used in training" not in place
    said, _ = measured("images", "--data", folder, "--measures", "performance", "--train", 30, "--seed", 4)
    assert "30 of the 60 training samples, drawn by seed 4, and the test split that set comes with" in said
    (folder / "test-00000-of-00001.parquet").unlink()
    said, _ = measured("images", "--data", folder, "--measures", "performance")
    assert "the split of set that seed 0 draws: --seed must be the one used in training" in said
    shutil.copy(folder / "train-00000-of-00001.parquet", folder / "validation-00000-of-00001.parquet")
    said, _ = measured("images", "--data", folder, "--measures", "performance")
    assert "comes with (the validation split serves as test set), whatever the seed" in said


def test_outputs_that_have_been_through_a_softmax_are_remarked_on(here):
    for factory, remarked in (("soft", True), ("digits", False)):
        said, page = measured(factory, "--data", "digits", "--measures", "performance")
        assert ("cross_entropy takes logits" in said) == remarked == ("cross_entropy takes logits" in page)
    said, _ = measured("soft", "--data", "digits", "--measures", "performance", "--loss", "squared_error")
    assert "logits" not in said


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_the_names_of_a_wrapper_are_recognised(here, prefix):
    wrapped = {prefix + name: tensor for name, tensor in state("digits").items()}
    said, _ = measured("digits", "--data", "digits", code=2, **wrapped)
    assert f"save the network inside, model.{prefix}state_dict()" in said
    other = {prefix + "x": torch.zeros(1)}
    assert "save the network inside" not in measured("digits", "--data", "digits", code=2, **other)[0]


def test_whole_numbers_are_no_weights(here):
    said, _ = measured("digits", "--data", "digits", code=2, weight=torch.ones(10, 64).long(), bias=torch.zeros(10))
    assert "weight is int64 in the file, float32 in the model" in said
    assert "bias" not in said


def test_a_factory_named_by_its_file(here):
    save_file(state("digits"), "mine.safetensors")
    result = CliRunner().invoke(app, ["measure", "mine.safetensors", "--model", "mine.py:digits", "--data", "digits"])
    assert result.exit_code == 2
    assert "write mine:…, without .py" in result.stderr


# --- topics, JSON, progress ---------------------------------------------------------------------------------------


def test_measures_are_found_by_topic_once_each():
    topics = measures.topics()
    assert sorted(name for names in topics.values() for name in names) == sorted(measures.names())
    assert not set(topics) & set(measures.names())
    found = [one.name for one in find_measures(["sharpness", "top_eigenvalues", "sam_sharpness"])]
    assert found == [*topics["sharpness"], "top_eigenvalues"]
    for wrong, near in (("sharpnes", "sharpness"), ("sam_sharpnes", "sam_sharpness"), ("spectra", "spectrum")):
        with pytest.raises(LookupError, match=f"did you mean '{near}'"):
            find_measures([wrong])


def test_the_json_has_what_the_numbers_depend_on_and_their_errors(here):
    said, page = measured("digits", "--data", "digits", "--measures", "outcomes,sam_sharpness", "--json", "deep/v.json")
    assert "sam_sharpness" in said
    assert "--measures outcomes,sam_sharpness" in page
    held = json.loads(Path("deep/v.json").read_text(encoding="utf-8"))
    assert held["dtype"] == "float32"
    assert held["seed"] == 0
    assert set(held["config"]["measures"]) == {"performance", "sam_sharpness"}
    assert held["config"]["measures"]["sam_sharpness"]["settings"]["radius"] == 0.05
    sets = landscope.data.digits(0)
    assert sets.test is not None
    assert {name: part["samples"] for name, part in held["data"]["sets"].items()} == {
        "train": sets.train.n, "valid": 180, "test": sets.test.n,
    }  # fmt: skip
    assert held["data"]["sets"]["test"]["sha256"] == own.fingerprint(sets.test)["sha256"]
    accuracy = held["values"]["performance"]["test_accuracy"]
    p, sem = accuracy["value"], accuracy["sem"]
    assert sem == pytest.approx(math.sqrt(p * (1 - p) / sets.test.n))
    assert accuracy["interval"] == pytest.approx(list(Estimate(p, sem, sets.test.n).interval()))
    assert held["values"]["performance"]["train_loss"].keys() == {"value", "exact"}
    assert hashlib.sha256(Path("mine.safetensors").read_bytes()).hexdigest() == held["config"]["checkpoint"]["sha256"]


def test_json_on_standard_output_stands_alone(here):
    save_file(state("digits"), "mine.safetensors")
    words = ["measure", "mine.safetensors", "--model", "mine:digits", "--data", "digits", "--measures", "performance"]
    result = CliRunner().invoke(app, [*words, "--json", "-"])
    assert result.exit_code == 0, result.output
    assert "performance" in json.loads(result.stdout)["values"]
    assert "Report:" in result.stderr
    result = CliRunner().invoke(app, [*words, "--json", str(here)])
    assert result.exit_code == 2
    assert "--json" in result.stderr


def test_a_fingerprint_is_of_the_numbers_their_order_and_type():
    x, y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 2])
    one = own.fingerprint(Batches(x, y, 2))
    assert one == own.fingerprint(Batches(x.clone(), y.clone(), 3))
    assert one["inputs"] == {"dtype": "float32", "shape": [3, 2]}
    others = [(x.flip(0), y), (x, y.flip(0)), (x.double(), y), (x.reshape(3, 1, 2), y), (x + 1e-6, y)]
    assert len({own.fingerprint(Batches(*other, 2))["sha256"] for other in others} | {one["sha256"]}) == 6


def test_json_values_say_what_is_not_finite_and_what_is_beside():
    held = own.values_json(
        {
            "m": {
                "a": math.nan,
                "b": Estimate(2.0),
                "c": Estimate(2.0, 0.5, 1),
                "largest_eigenvalues": torch.tensor([2.0, 1.0]),
                "largest_eigenvalues_residuals": torch.tensor([0.5, math.inf]),
                "largest_eigenvalues_converged": torch.tensor([1.0, 0.0]),
            }
        }
    )["m"]
    assert held["a"] == {"value": None, "special": "nan"}
    assert held["b"]["exact"]
    assert held["b"]["interval"] == [2.0, 2.0]
    assert held["c"]["interval"] is None
    assert held["largest_eigenvalues"] == {
        "value": [2.0, 1.0], "shape": [2], "residual": [0.5, None], "converged": [1.0, 0.0],
    }  # fmt: skip
    json.dumps(held, allow_nan=False)


KNOWN = {
    "train_loss": 0.5,
    "sam_sharpness": 0.1,
    "gradient_curvature": math.nan,
    "keskar_sharpness": torch.tensor([0.5, 2.0]),
    "keskar_sharpness_epsilons": torch.tensor([0.001, 0.01]),
    "critical_sharpness": 4.0,
    "layer.fc.top_eigenvalue": 2.0,
    "layer.fc.top_eigenvalue_residual": 0.5,
    "layer.fc.top_eigenvalue_converged": 0.0,
    "layer.fc.parameters": 12.0,
    "absolute_loss": torch.tensor([1.0, 2.0]),
    "absolute_loss_sem": torch.tensor([0.1, 0.2]),
    "absolute_magnitudes": torch.tensor([0.5, 1.0]),
    "density": torch.zeros(400),
    "per_layer_products": 28.0,
    "my_own": 1.0,
}


def test_what_is_known_of_an_error_reaches_programs():
    """Lower bounds, residuals with their flags, what is exact: nothing of it is the page's alone."""
    held = own.values_json({"m": KNOWN})["m"]
    exact = {name for name, value in held.items() if value.get("exact")}
    assert exact == {"train_loss", "sam_sharpness", "layer.fc.parameters", "per_layer_products"}
    assert {name for name, value in held.items() if value.get("bound") == "lower"} == {"keskar_sharpness"}
    assert held["critical_sharpness"] == {"value": 4.0, "rtol": 0.01}
    assert held["layer.fc.top_eigenvalue"] == {"value": 2.0, "residual": 0.5, "converged": False}
    assert "layer.fc.top_eigenvalue_converged" not in held
    part = {"sam_sharpness": 0.1, "sam_sharpness_data_sem": 0.02}  # of some of the samples: not exact
    assert own.values_json({"m": part})["m"]["sam_sharpness"] == {"value": 0.1, "data_sem": 0.02}


def test_what_is_known_of_an_error_reaches_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    facts.print_values({"m": KNOWN}, {})
    said = " ".join(capsys.readouterr().out.split())
    for line in (
        "train_loss 0.5 (exact)",
        "sam_sharpness 0.1 (exact)",
        "keskar_sharpness 0.5 2 at 0.001 0.01 (lower bounds)",
        "critical_sharpness 4 (to 1 %)",
        "layer.fc.top_eigenvalue 2 (residual 0.5, not converged)",
        "absolute_loss 1 2 at 0.5 1 (standard error at most 0.2)",
        "density 400 values, on the page and in --json",
        "per_layer_products 28 my_own 1 m: An exact eigenvalue lies within the residual.",
    ):
        assert line in said, said
    assert said.count("nan") == 1
    assert "nan (exact)" not in said


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_names_and_values_are_wrapped_to_the_terminal_and_never_cut(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    long = "layer.encoder.blocks.11.attention.output.dense.trace_squared"
    told = "training and test set", "the split of a set with a name and a reason that is longer than any of the widths"
    facts.print_values({"a_measure": {"absolute_loss_increase_percent": 1.5, long: 2.0}}, dict([told]))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if long not in line) <= columns
    said = " ".join(" ".join(lines).split())
    for part in ("absolute_loss_increase_percent 1.5", f"{long} 2", told[1]):
        assert part in said
    assert "…" not in said


def test_whoever_listens_hears_how_far_a_measure_is(data):
    heard: list[Progress] = []
    chosen = ["top_eigenvalues", "average_case_sharpness"]
    with listening(heard.append):
        landscope.measure(nn.Linear(5, 3), nn.CrossEntropyLoss(), train=data, measures=chosen)
    assert {at.phase for at in heard} >= {"eigenpairs", "draws"}
    assert all(at.products <= at.expected for at in heard)
    for measure, phase in (
        ("keskar_sharpness", "search in the box"),
        ("critical_sharpness", "search along the gradient"),
        ("sam_sharpness", "gradient"),
        (call(measures.sam_sharpness, batch=4), "steps"),
    ):
        heard.clear()
        with listening(heard.append):
            landscope.measure(nn.Linear(5, 3), nn.CrossEntropyLoss(), train=data, measures=[measure])
        assert phase in {at.phase for at in heard}
        assert len(heard) > 1
        assert all(at.products <= at.expected for at in heard)
    told = len(heard)
    landscope.measure(nn.Linear(5, 3), nn.CrossEntropyLoss(), train=data, measures=chosen)
    assert len(heard) == told


# --- saying no at once --------------------------------------------------------------------------------------------

WRONG = {
    "there is no checkpoint missing": {"checkpoint": "missing.safetensors"},
    "--model takes package.module:factory": {"factory": "mine"},
    "cannot import 'nobody'": {"factory": "nobody:digits"},
    "'nodata' is neither a folder here nor a data set that is known. Known: digits": {"data": "nodata"},
    "did you mean 'digits'\\? Known": {"data": "digit"},
    "the topics, and the measures of each, are .*outcomes \\(performance\\)": {"measures": ("zzz",)},
    "--loss is cross_entropy or squared_error": {"loss": "hinge"},
    "--out /proc/x/y.html cannot be written, there is no writing in /proc": {"out": Path("/proc/x/y.html")},
    "--json /proc/x.json cannot be written": {"json": "/proc/x.json"},
    "--json mine.py/v.json is no place for a file": {"json": "mine.py/v.json"},
}


@pytest.mark.parametrize("said", list(WRONG))
def test_what_cannot_be_measured_or_written_is_refused_before_anything_else(here, said):
    if "/proc" in said and not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    save_file(state("digits"), "mine.safetensors")
    given = {"checkpoint": "mine.safetensors", "factory": "mine:digits", "data": "digits"} | WRONG[said]
    with pytest.raises((ValueError, LookupError, ImportError, FileNotFoundError), match=said):
        own.Wanted(Path(given.pop("checkpoint")), **given).check()
    assert {path.name for path in here.iterdir()} <= {"mine.py", "mine.safetensors", "__pycache__"}


def test_a_place_that_has_no_folder_yet_may_be_written_to(here):
    save_file(state("digits"), "mine.safetensors")
    own.Wanted(Path("mine.safetensors"), "mine:digits", "digits", out=Path("a/b/c.html"), json="a/d.json").check()
    assert not Path("a").exists()


def test_what_is_wrong_is_told_without_pytorch(here):
    code = "import sys, landscope.own as own; from pathlib import Path\n"
    code += "try: own.Wanted(Path('x'), 'mine:digits', 'digits').check()\n"
    code += "except FileNotFoundError: sys.exit(3 if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_measure_at_all_is_not_taken_for_all():
    for wrong in ([""], [" , ", ""]):
        with pytest.raises(ValueError, match="--measures names none"):
            own.listed(wrong)


def test_an_interruption_says_what_is_there(here, monkeypatch):
    save_file(state("digits"), "mine.safetensors")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("landscope.own.measuring.measured", interrupted)
    result = CliRunner().invoke(app, ["measure", "mine.safetensors", "--model", "mine:digits", "--data", "digits"])
    assert result.exit_code == 130
    assert "nothing is written before all measures are taken" in result.stderr
    assert "is kept" not in result.stderr
    assert not list(here.glob("*.html"))


# --- what does not fit --------------------------------------------------------------------------------------------

CLASSES = torch.arange(40) % 3
UNFIT = {
    "does not take the test inputs, float32 of shape [40, 2]": {"test": (torch.zeros(40, 2), CLASSES)},
    "does not take the train inputs, float64 of shape [40, 5]": {"train": (torch.zeros(40, 5).double(), CLASSES)},
    "the network's weights are float32: convert": {"train": (torch.zeros(40, 5).bfloat16(), CLASSES)},
    "does not take the train targets, int32 of shape [40], 0 to 2,": {"train": (torch.zeros(40, 5), CLASSES.int())},
    "does not take the valid targets, float32": {"valid": (torch.zeros(40, 5), CLASSES.float())},
    "does not take the test targets, int64 of shape [2], 0 to 3,": {
        "test": Batches(torch.zeros(41, 5), torch.cat([CLASSES, torch.tensor([3])]), 8)
    },
    "does not take the train targets, int64 of shape [40], -1 to 1,": {"train": (torch.zeros(40, 5), CLASSES - 1)},
}


@pytest.mark.parametrize("said", list(UNFIT))
def test_data_that_do_not_fit_are_named(data, said):
    given = {"train": data} | UNFIT[said]
    with pytest.raises(ValueError, match=re.escape(said)):
        landscope.measure(nn.Linear(5, 3), nn.CrossEntropyLoss(), **given, measures=["performance"])


def test_a_monitor_names_the_set_that_does_not_fit(data):
    with pytest.raises(ValueError, match="does not take the valid inputs"):
        landscope.monitor(
            nn.Linear(5, 3), nn.CrossEntropyLoss(), train=data, valid=(data[0][:, :2], data[1]), measures="performance"
        )


@pytest.mark.parametrize(("factory", "said"), [("lazy", "size of weight, bias is not known"), ("number", "is an int")])
def test_factories_that_give_no_network_yet(here, factory, said):
    with Path("mine.py").open("a") as file:
        file.write("def lazy(): return nn.LazyLinear(10)\nnumber = 3\n")
    with pytest.raises(ValueError, match=said):
        own.build(f"mine:{factory}")
