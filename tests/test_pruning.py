"""Masks, rewinding, and weights that stay exactly zero."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from landscope.data import digits
from landscope.losses import cross_entropy
from landscope.models import cnn, mlp, seeded
from landscope.optimizers import SAM
from landscope.pruning import (
    densities,
    keep_zeros,
    magnitude_masks,
    masked,
    prunable,
    prune_and_rewind,
    shuffled_masks,
)
from landscope.spec import Recipe, call
from landscope.train import advance, begin, checkpoint, restore, state_of

SHAPES = ((5, 4), (3, 5), (2, 3, 3, 3))


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(1)
    tensors = {f"{i}.weight": torch.randn(shape, generator=generator) for i, shape in enumerate(SHAPES)}
    return tensors | {"0.bias": torch.randn(5, generator=generator), "count": torch.tensor(3)}


def kept(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def total(masks):
    return sum(mask.numel() for mask in masks.values())


# --- which weights, and how many ------------------------------------------------------------------------------------


def test_weights_are_prunable_and_biases_and_normalisation_are_not():
    assert prunable(mlp((4,), 2, widths=(3,)).state_dict()) == ["1.weight", "3.weight"]
    state = cnn((3, 8, 8), 10, channels=2).state_dict()
    assert all(state[name].dim() in (2, 4) for name in prunable(state))
    assert {name for name in state if state[name].dim() > 1} == set(prunable(state))


@pytest.mark.parametrize("density", [1.0, 0.95, 0.7, 0.3, 0.15])
def test_exactly_the_smallest_number_that_reaches_the_density_is_kept(state, density):
    masks = magnitude_masks(state, density=density)
    assert kept(masks) == math.ceil(Fraction(str(density)) * total(masks))
    assert (kept(masks) - 1) / total(masks) < density <= kept(masks) / total(masks) + 1e-12
    layers = magnitude_masks(state, density=density, scope="layer")
    for mask in layers.values():
        assert int(mask.sum()) == math.ceil(Fraction(str(density)) * mask.numel())


def test_a_density_is_the_number_that_is_written():
    """0.07 is stored as a little more than 0.07, and 0.29 as a little less: neither moves the count."""
    scores = {"weight": torch.arange(1.0, 101).reshape(10, 10)}
    for percent in range(1, 101):
        assert kept(magnitude_masks(scores, density=percent / 100)) == percent


def test_the_largest_are_kept_over_all_layers_or_within_each(state):
    masks = magnitude_masks(state, density=0.4)
    inside = torch.cat([state[n][m].abs() for n, m in masks.items()])
    outside = torch.cat([state[n][~m].abs() for n, m in masks.items()])
    assert inside.min() >= outside.max()
    for name, mask in magnitude_masks(state, density=0.4, scope="layer").items():
        assert state[name][mask].abs().min() >= state[name][~mask].abs().max()


def test_ties_are_broken_by_name_and_row_by_row():
    scores = {"second": -torch.ones(2, 3), "first": torch.ones(2, 3)}
    masks = magnitude_masks(scores, density=0.75)
    assert bool(masks["first"].all())
    assert masks["second"].tolist() == [[True] * 3, [False] * 3]
    large = {"weight": torch.ones(300, 300)}  # sorting is stable at any size
    assert magnitude_masks(large, density=0.5)["weight"].reshape(-1).nonzero().max() == 44_999


def test_a_fraction_is_of_the_weights_that_are_left_and_masks_are_nested(state):
    left, before = state, None
    for _ in range(4):
        masks = magnitude_masks(left, fraction=0.2)
        n = sum(int((left[name] != 0).sum()) for name in masks)
        assert kept(masks) == math.ceil(Fraction("0.8") * n)
        if before is not None:
            assert all(bool((mask <= before[name]).all()) for name, mask in masks.items())
        left, before = masked(left, masks), masks


def test_levels_of_a_density_are_nested_as_well(state):
    first = masked(state, magnitude_masks(state, density=0.5))
    second = magnitude_masks(first, density=0.3)
    assert all(bool((mask <= (first[name] != 0)).all()) for name, mask in second.items())


def test_what_is_skipped_is_left_whole_and_counts_in_no_share(state):
    masks = magnitude_masks(state, density=0.5, skip=["1"])
    assert set(masks) == {"0.weight", "2.weight"}
    assert kept(masks) == math.ceil((20 + 54) / 2)
    assert torch.equal(masked(state, masks)["1.weight"], state["1.weight"])


# --- states ---------------------------------------------------------------------------------------------------------


def test_a_ticket_has_the_sources_weights_where_the_scores_are_large(state):
    source = {name: t + 1 for name, t in state.items()}
    ticket = prune_and_rewind(source=source, scores=state, density=0.3)
    masks = magnitude_masks(state, density=0.3)
    for name, t in ticket.items():
        expected = source[name] * masks[name] if name in masks else source[name]
        assert torch.equal(t, expected)
        assert t.data_ptr() != source[name].data_ptr()


def test_a_kept_weight_is_never_zero_and_a_pruned_one_always(state):
    source = {name: torch.zeros_like(t) for name, t in state.items()}
    ticket = prune_and_rewind(source=source, scores=state, density=0.3)
    for name, mask in magnitude_masks(state, density=0.3).items():
        assert torch.equal(ticket[name] != 0, mask)
        assert ticket[name].abs().max() < 1e-37
    assert torch.equal(ticket["0.bias"], source["0.bias"])


def test_random_masks_have_the_tickets_density_in_every_layer(state):
    masks = magnitude_masks(state, density=0.3)
    random = shuffled_masks(masks, seed=3)
    assert [int(m.sum()) for m in random.values()] == [int(m.sum()) for m in masks.values()]
    assert any(not torch.equal(random[name], masks[name]) for name in masks)
    assert all(torch.equal(a, b) for a, b in zip(random.values(), shuffled_masks(masks, seed=3).values(), strict=True))
    ticket = prune_and_rewind(source=state, scores=state, density=0.3, shuffle=3)
    assert all(torch.equal(ticket[name] != 0, mask) for name, mask in random.items())


def test_the_order_of_a_states_tensors_changes_nothing(state):
    """A state that comes out of a store is in no order of its own."""
    turned = dict(reversed(state.items()))
    settings: dict[str, Any]
    for settings in ({"density": 0.3}, {"fraction": 0.4, "scope": "layer"}, {"density": 0.3, "shuffle": 0}):
        first = prune_and_rewind(source=state, scores=state, **settings)
        second = prune_and_rewind(source=turned, scores=turned, **settings)
        assert all(torch.equal(first[name], second[name]) for name in state)


def test_every_place_of_a_random_mask_is_as_likely_as_any_other():
    mask = {"weight": torch.tensor([[True, False, False, False]])}
    counts = torch.stack([shuffled_masks(mask, seed=s)["weight"].int() for s in range(2000)]).sum(0)
    # 500 expected in each place, with a standard deviation of 19.4
    assert all(abs(int(n) - 500) < 5 * 19.4 for n in counts.reshape(-1))


def test_a_dense_ticket_is_the_source_itself(state):
    ticket = prune_and_rewind(source=state, scores=state, density=1.0)
    assert all(torch.equal(ticket[name], t) for name, t in state.items())


def test_the_levels_of_iterative_pruning():
    found = densities()
    assert found[0] == 0.8
    assert found[9] == 0.107374
    assert len(found) == 16
    assert found[-1] < 0.03 <= found[-2]
    assert densities(fraction=0.5, until=0.5) == (0.5, 0.25)


# --- zeros that stay ------------------------------------------------------------------------------------------------

DATA = call(digits, train=60, valid=0, test=20)
DENSE = Recipe(DATA, call(mlp, widths=(12,)), call(cross_entropy), call(SGD, lr=0.1), steps=23, batch_size=16, seed=1)
OPTIMIZERS = {
    "momentum": call(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": call(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": call(Adam, lr=0.01, weight_decay=0.01),
    "AdamW": call(AdamW, lr=0.01, weight_decay=0.1),
    "SAM": call(SAM, base="sgd", lr=0.1, momentum=0.9, rho=0.1),
}


@pytest.fixture(scope="module")
def ticket():
    training = begin(DENSE, DENSE.data(1, None))
    start = state_of(training.model)
    for _ in advance(training):
        pass
    return prune_and_rewind(source=start, scores=state_of(training.model), density=0.2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_exactly_zero_after_every_step(name, ticket):
    recipe = replace(DENSE, optimizer=OPTIMIZERS[name], constraint=call(keep_zeros))
    training = begin(recipe, recipe.data(1, None), start=ticket)
    zeros = {n: t == 0 for n, t in state_of(training.model).items() if t.dim() > 1}
    assert sum(int(z.sum()) for z in zeros.values()) == math.floor(0.8 * (64 * 12 + 12 * 10))
    for step in advance(training):
        state = step.model.state_dict()
        assert all(torch.count_nonzero(state[n][zero]) == 0 for n, zero in zeros.items())
    after = state_of(training.model)
    assert all(bool((after[n][~zero] != 0).all()) for n, zero in zeros.items())
    assert not torch.equal(after["1.bias"], ticket["1.bias"])  # biases are free


def test_without_the_constraint_they_would_move(ticket):
    training = begin(DENSE, DENSE.data(1, None), start=ticket)
    for _ in advance(training):
        pass
    assert torch.count_nonzero(state_of(training.model)["3.weight"][ticket["3.weight"] == 0]) > 0


def test_momentum_and_weight_decay_do_not_bring_a_weight_back():
    """A weight with momentum behind it is masked in the middle of training: only the mask holds it at zero."""
    with seeded(0):
        model = nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for held in (False, True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            if held:
                keep_zeros(model)
                assert model.weight[0, 1] == 0
        if not held:
            with torch.no_grad():
                model.weight[0, 1] = 0
            keep_zeros(model)
    assert optimizer.state[model.weight]["momentum_buffer"][0, 1] != 0


def test_a_run_that_is_resumed_keeps_its_zeros_bit_for_bit(ticket):
    recipe = replace(DENSE, optimizer=OPTIMIZERS["momentum"], constraint=call(keep_zeros))
    data = recipe.data(1, None)
    whole = begin(recipe, data, start=ticket)
    (saved,) = [checkpoint(step) for step in advance(whole) if step.step == 10]
    again = begin(recipe, data, start=ticket)
    restore(again, *saved)
    for _ in advance(again):
        pass
    first, second = state_of(whole.model), state_of(again.model)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_the_masks_are_no_part_of_the_networks_state_and_a_network_without_zeros_is_left_as_it_is():
    model = mlp((4,), 2, widths=(3,))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    keep_zeros(model)
    keep_zeros(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model[1].weight.grad is None
    assert model[1].weight.requires_grad


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, math.nan])
def test_a_density_outside_of_0_and_1_is_refused(state, density):
    with pytest.raises(ValueError, match=r"density is the share of weights that is kept, in \(0, 1\], not"):
        magnitude_masks(state, density=density)


@pytest.mark.parametrize("fraction", [1.0, -0.1, 2.0])
def test_a_fraction_that_prunes_everything_is_refused(state, fraction):
    with pytest.raises(ValueError, match=r"fraction is the share .* in \[0, 1\), not"):
        magnitude_masks(state, fraction=fraction)


def test_one_of_density_and_fraction_is_given(state):
    given: dict[str, Any]
    for given in ({}, {"density": 0.5, "fraction": 0.5}):
        with pytest.raises(ValueError, match="give density or fraction, one of them"):
            prune_and_rewind(source=state, scores=state, **given)


def test_a_layer_that_would_be_pruned_to_nothing_is_named(state):
    small = state | {"1.weight": state["1.weight"] * 1e-6}
    with pytest.raises(ValueError, match=r'1\.weight would be pruned to nothing \(18 weights .* scope="layer"'):
        magnitude_masks(small, density=0.2)
    assert all(bool(mask.any()) for mask in magnitude_masks(small, density=0.2, scope="layer").values())


def test_more_weights_than_are_left_are_refused(state):
    pruned = masked(state, magnitude_masks(state, density=0.3))
    with pytest.raises(ValueError, match=r"a density of 0\.5 needs 45 of 89 weights, but only 27 of these scores"):
        magnitude_masks(pruned, density=0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(state, value):
    state["2.weight"][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"2\.weight is not finite"):
        magnitude_masks(state, density=0.5)


def test_other_bad_input(state):
    with pytest.raises(ValueError, match="scope is one of global, layer, not 'layers'"):
        magnitude_masks(state, density=0.5, scope="layers")
    with pytest.raises(LookupError, match=r"skip names 'head', which the network does not have; it has 0\.weight"):
        magnitude_masks(state, density=0.5, skip=["head"])
    with pytest.raises(ValueError, match="nothing to prune"):
        magnitude_masks({"bias": torch.ones(3)}, density=0.5)
    with pytest.raises(LookupError, match=r"a mask for 9\.weight, which the state does not have"):
        masked(state, {"9.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"0\.weight has the shape \[5, 4\], its mask \[4, 5\]"):
        masked(state, {"0.weight": torch.ones(4, 5, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"in bools; that of 0\.weight is torch\.float32"):
        masked(state, {"0.weight": torch.ones(5, 4)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, "fraction lies between 0 and 1"),
        ({"fraction": 1.0}, "fraction lies between 0 and 1"),
        ({"until": 0.0}, "until lies between 0 and 1"),
        ({"until": 1.5}, "until lies between 0 and 1"),
        ({"fraction": 0.9999999, "until": 1e-5}, "prunes to nothing"),
        ({"fraction": 0.0001}, "levels away"),
    ],
)
def test_a_schedule_that_prunes_to_nothing_or_never_ends_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        densities(**settings)
