"""Measuring a network of one's own from Python, and what its display may contain."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import landscope
from landscope import measures


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
    landscope.measure(model, nn.CrossEntropyLoss(), train=data, test=data)
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
