"""A plain recipe, and one with everything that a recipe can have; their names are pinned."""

from dataclasses import replace

from landscope.spec import (
    Call,
    Recipe,
    at,
)

DATA = Call("landscope.data.digits", (("train", 100),))
MODEL = Call("landscope.models.mlp", (("widths", (64, 64)),))
LOSS = Call("landscope.losses.cross_entropy")
SGD = Call("torch.optim.sgd.SGD", (("lr", 0.1),))
RECIPE = Recipe(DATA, MODEL, LOSS, SGD, steps=100, batch_size=8, seed=0)
RICH = replace(
    RECIPE,
    regularizers=(Call("landscope.regularizers.flatness", (("weight", 0.1),), 2),),
    schedule=Call("torch.optim.lr_scheduler.StepLR", (("step_size", 10),)),
    order_seed=3,
    stop=Call("landscope.train.loss_below", (("every", 5), ("level", 0.01))),
    start=Call("landscope.pruning.rewind", (("source", at(RECIPE, 0)), ("scores", at(RECIPE, "end")))),
)
