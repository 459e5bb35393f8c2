"""The optimizers in recipes: a run that is interrupted continues bit for bit, and its gradients are counted."""

import json
from pathlib import Path

import pytest
import torch

from landscope.data import digits
from landscope.losses import cross_entropy
from landscope.models import mlp
from landscope.optimizers import ASAM, GSAM, SAM, EntropySGD, PathSGD, ProxProp
from landscope.spec import Call, Recipe, call
from landscope.train import Training, advance, begin, checkpoint, restore

OPTIMIZERS = {
    "SAM": call(SAM, lr=0.05, momentum=0.9),
    "ASAM": call(ASAM, base="adam", lr=0.003),
    "GSAM": call(GSAM, lr=0.05, rho_min=0.01, clip=1.0),
    "EntropySGD": call(EntropySGD, lr=0.5, inner_steps=3, momentum=0.9, noise=0.01),
    "PathSGD": call(PathSGD, lr=0.02, momentum=0.9, every=3, calibrate=True),
    "ProxProp": call(ProxProp, lr=0.003),
}
GRADIENTS = {"SAM": 2, "ASAM": 2, "GSAM": 2, "EntropySGD": 3, "PathSGD": 1, "ProxProp": 1}


def begun(optimizer: Call, cache: Path) -> Training:
    recipe = Recipe(
        data=call(digits, train=100),
        model=call(mlp, widths=(16, 16), batchnorm=True),
        loss=call(cross_entropy),
        optimizer=optimizer,
        schedule=call(torch.optim.lr_scheduler.StepLR, step_size=6),
        steps=13,
        batch_size=32,
        seed=3,
    )
    return begin(recipe, recipe.data(recipe.seed, cache))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupted_run_ends_where_another_ends(name, tmp_path):
    whole, parted = begun(OPTIMIZERS[name], tmp_path), begun(OPTIMIZERS[name], tmp_path)
    for _ in advance(whole):
        pass
    for training in advance(parted):
        if training.step == 10:
            break
    tensors, meta = checkpoint(parted)
    resumed = begun(OPTIMIZERS[name], tmp_path)
    restore(resumed, tensors, json.loads(json.dumps(meta)))
    for _ in advance(resumed):
        pass
    state = resumed.model.state_dict()
    assert whole.status == resumed.status == "done"
    assert all(torch.equal(t, state[n]) for n, t in whole.model.state_dict().items())
    assert whole.gradient_evaluations == resumed.gradient_evaluations == 13 * GRADIENTS[name]
    assert resumed.optimizer.param_groups[0]["gradients"] == 13 * GRADIENTS[name]
