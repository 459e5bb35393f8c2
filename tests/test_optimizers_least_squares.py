"""Linear regression on random features in one step: against NumPy's solution, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn

from landscope.data import digits
from landscope.losses import cross_entropy, squared_error
from landscope.models import random_features
from landscope.optimizers import LeastSquares, least_squares
from landscope.spec import Recipe, call
from landscope.train import advance, begin


@pytest.mark.parametrize(("n", "f"), [(30, 10), (10, 30), (20, 20)])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_solution_is_numpys(n, f, ridge):
    random = np.random.default_rng(n)
    features, targets = random.standard_normal((n, f)), random.standard_normal((n, 3))
    found = least_squares(torch.from_numpy(features), torch.from_numpy(targets), ridge=ridge).numpy()
    if ridge:
        expected = np.linalg.solve(features.T @ features + n * ridge * np.eye(f), features.T @ targets)
    else:
        expected = np.linalg.pinv(features) @ targets
    assert found == pytest.approx(expected.T, abs=1e-9)


def test_of_features_that_repeat_each_gets_its_share():
    features = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]], dtype=torch.float64)
    found = least_squares(features, torch.tensor([[2.0], [4.0]], dtype=torch.float64))
    assert torch.allclose(found, torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64))


def trained(features: int, steps: int = 1):
    recipe = Recipe(
        data=call(digits, train=60, valid=0, test=50),
        model=call(random_features, features=features),
        loss=call(squared_error),
        optimizer=call(LeastSquares),
        steps=steps,
        batch_size=60,
        seed=1,
    )
    training = begin(recipe, recipe.data(recipe.seed, None))
    before = {name: w.clone() for name, w in training.model.state_dict().items()}
    for _ in advance(training):
        pass
    return training, before


def test_a_run_of_one_step_is_the_regression():
    training, before = trained(20)
    after, train = training.model.state_dict(), training.data.train
    assert training.status == "done"
    assert torch.equal(after["1.weight"], before["1.weight"])  # the features are not trained
    phi = torch.relu(train.inputs @ before["1.weight"].T).double().numpy()
    expected = np.linalg.pinv(phi) @ np.eye(10)[train.targets.numpy()]
    assert after["3.weight"].numpy() == pytest.approx(expected.T, abs=1e-5)


def test_more_features_than_samples_interpolate_and_a_second_step_changes_nothing():
    once, twice = trained(300)[0], trained(300, steps=2)[0]
    train = once.data.train
    assert squared_error()(once.model(train.inputs), train.targets) < 1e-8
    weights = [training.model.state_dict()["3.weight"] for training in (once, twice)]
    assert torch.allclose(*weights, atol=1e-5)


def stepped(model, loss, inputs=None):
    optimizer, inputs = LeastSquares(model), torch.randn(4, 3) if inputs is None else inputs

    def closure():
        value = loss(model(inputs), torch.tensor([0, 1, 1, 0]))
        value.backward()
        return value

    return optimizer.step(closure)


def test_what_it_cannot_solve_is_refused():
    model = random_features((3,), 2, features=5)
    with pytest.raises(ValueError, match=r"minimises losses\.squared_error"):
        stepped(model, cross_entropy())
    with pytest.raises(ValueError, match="needs a closure"):
        LeastSquares(model).step()
    with pytest.raises(ValueError, match=r"has to call loss\.backward"):
        LeastSquares(model).step(lambda: torch.tensor(1.0))
    with pytest.raises(ValueError, match="ridge >= 0, not -1"):
        LeastSquares(model, ridge=-1.0)
    with pytest.raises(ValueError, match="without bias"):
        LeastSquares(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match="without bias"):
        LeastSquares(nn.ReLU())
    with pytest.raises(ValueError, match=r"freeze 0\.weight, 0\.bias"):
        LeastSquares(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False)))
    with pytest.raises(ValueError, match="sizes of at least 1"):
        random_features((3,), 2, features=0)
