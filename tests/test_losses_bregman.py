"""The Bregman family: dualities, gradients, metrics, PyTorch's losses, and what the paper's equations should say."""

import math
from collections.abc import Callable

import pytest
import torch
from cases import recipe
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from landscope.losses import (
    Bregman,
    bregman,
    check_additive,
    check_mean,
    cross_entropy,
    from_potential,
    squared_error,
)
from landscope.spec import call
from landscope.train import advance, begin

N, K = 7, 4
FAMILIES = ("squared", "categorical", "bernoulli", "poisson")
MATRIX = torch.tensor([[2.0, 0.5, 0, 0], [0.5, 1, 0.2, 0], [0, 0.2, 3, -1], [0, 0, -1, 1.5]], dtype=torch.float64)

POTENTIALS: dict[str, Bregman] = {
    "quadratic": from_potential(lambda y: y @ MATRIX @ y / 2),
    "quartic": from_potential(lambda y: (y.pow(4) / 4 + y.square() / 8).sum()),
    "entropy": from_potential(lambda y: torch.xlogy(y, y).sum() - y.sum(), interior=1.0),
    "coupled": from_potential(lambda y: y.logsumexp(0) + y.square().sum() / 2, gradient=lambda y: y.softmax(0) + y),
}
LOSSES = {name: bregman(family=name) for name in FAMILIES} | POTENTIALS


def outputs_of(seed: int = 0, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets_of(name: str, seed: int = 1) -> Tensor:
    """Means from the inside of the domain."""
    return LOSSES[name].mean(outputs_of(seed)).detach()


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_both_divergences(name: str):
    loss, theta, y = LOSSES[name], outputs_of(), targets_of(name)
    each = loss.each(theta, y)
    torch.testing.assert_close(each, loss.divergence(y, loss.mean(theta)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(each, loss.dual_divergence(theta, loss.natural(y)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(each, loss.psi(theta) + loss.phi(y) - (theta * y).sum(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss(theta, y), each.mean())


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_positive_but_where_the_target_is_the_mean(name: str):
    loss, theta, y = LOSSES[name], outputs_of(), targets_of(name)
    assert (loss.each(theta, y) > 1e-6).all()
    assert loss.each(theta, loss.mean(theta)).abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_mean_minus_the_target_and_the_hessian_the_metric(name: str):
    loss, theta, y = LOSSES[name], outputs_of().requires_grad_(), targets_of(name)
    (gradient,) = torch.autograd.grad(loss.each(theta, y).sum(), theta, create_graph=True)
    torch.testing.assert_close(gradient, loss.mean(theta) - y, rtol=1e-10, atol=1e-12)
    rows = [torch.autograd.grad(gradient[:, j].sum(), theta, retain_graph=True)[0] for j in range(K)]
    metric, factor = loss.metric(theta), loss.metric_factor(theta)
    torch.testing.assert_close(torch.stack(rows, 1), metric, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(factor @ factor.mT, metric, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_natural_and_mean_are_inverse_to_each_other(name: str):
    loss, theta = LOSSES[name], outputs_of()
    back = loss.natural(loss.mean(theta))
    if name == "categorical":  # natural parameters are given up to a constant
        theta, back = theta - theta.mean(1, keepdim=True), back - back.mean(1, keepdim=True)
    torch.testing.assert_close(back, theta, rtol=1e-9, atol=1e-10)


def test_losses_are_pytorchs_up_to_the_normalisation_stated():
    theta, classes = outputs_of(), torch.arange(N) % K
    one_hot = functional.one_hot(classes, K).double()
    squared, categorical, bernoulli, poisson = (bregman(family=name) for name in FAMILIES)
    y = targets_of("squared")
    torch.testing.assert_close(squared(theta, y), K / 2 * functional.mse_loss(theta, y))
    torch.testing.assert_close(squared(theta, classes), K / 2 * functional.mse_loss(theta, one_hot))
    for target in (classes, one_hot):
        torch.testing.assert_close(categorical(theta, target), functional.cross_entropy(theta, classes))
    y = targets_of("categorical")
    entropy = -(y * y.log()).sum(1).mean()
    torch.testing.assert_close(categorical(theta, y), functional.cross_entropy(theta, y) - entropy)
    y = (targets_of("bernoulli") > 0.5).double()
    torch.testing.assert_close(bernoulli(theta, y), K * functional.binary_cross_entropy_with_logits(theta, y))
    torch.testing.assert_close(bernoulli(theta[:, :1], y[:, 0].long()), bernoulli(theta[:, :1], y[:, :1]))
    y = targets_of("poisson").round()
    constant = (torch.xlogy(y, y) - y).sum(1).mean()
    torch.testing.assert_close(poisson(theta, y), K * functional.poisson_nll_loss(theta, y) + constant)


def test_the_metric_is_the_fisher_information():
    theta = outputs_of()
    for name, support in (("categorical", torch.eye(K)), ("bernoulli", torch.cartesian_prod(*[torch.arange(2.0)] * K))):
        loss = bregman(family=name)
        support = support.double()
        scores = loss.mean(theta)[:, None, :] - support  # gradients of the loss at every possible target
        log_p = -torch.stack([loss.each(theta, y.expand(N, K)) for y in support], 1)
        assert log_p.exp().sum(1).sub(1).abs().max() < 1e-12
        expected = torch.einsum("ns,nsi,nsj->nij", log_p.exp(), scores, scores)
        torch.testing.assert_close(expected, loss.metric(theta), rtol=1e-11, atol=1e-13)


# --- the paper's equations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_equation_24(name: str):
    loss, y, z = LOSSES[name], targets_of(name, 1).requires_grad_(), targets_of(name, 2)
    (gradient,) = torch.autograd.grad(loss.divergence(y, z).sum(), y)
    expected = loss.natural(y) - loss.natural(z)
    if name == "categorical":  # Φ outside the simplex has a gradient of its own; along the simplex they agree
        gradient, expected = (g - g.mean(1, keepdim=True) for g in (gradient, expected))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_equation_21_as_printed_is_infinite_for_classes():
    loss, theta = bregman(family="categorical"), outputs_of()
    y = functional.one_hot(torch.arange(N) % K, K).double()
    as_printed = loss.divergence(loss.mean(theta), y)  # output first, target second
    assert torch.isinf(as_printed).all() or torch.isnan(as_printed).all()
    assert torch.isfinite(loss.each(theta, y)).all()
    torch.testing.assert_close(loss.each(theta, y), -theta.log_softmax(1)[torch.arange(N), torch.arange(N) % K])


@pytest.mark.parametrize("name", LOSSES)
def test_equation_31_needs_the_potential_of_the_target(name: str):
    loss, theta, t = LOSSES[name], outputs_of(), targets_of(name)
    mu = loss.mean(theta)
    likelihood = (t * theta).sum(1) - loss.psi(theta)
    torch.testing.assert_close(likelihood - loss.phi(t), -loss.divergence(t, mu), rtol=1e-10, atol=1e-11)
    assert (likelihood - loss.phi(mu) + loss.divergence(t, mu)).abs().max() > 1e-3  # as printed


@pytest.mark.parametrize("name", LOSSES)
def test_equation_32_is_a_divergence_of_means(name: str):
    loss, theta, mu = LOSSES[name], outputs_of(), targets_of(name)
    right = (theta * mu).sum(1) - loss.psi(theta) - loss.phi(mu)
    assert (right < 0).all()
    torch.testing.assert_close(right, -loss.divergence(mu, loss.mean(theta)), rtol=1e-10, atol=1e-11)


def test_the_binary_cumulant_is_not_minus_log_theta():
    loss, theta = bregman(family="bernoulli"), torch.tensor([[0.7]], dtype=torch.float64)
    assert loss.psi(theta).item() == pytest.approx(math.log1p(math.exp(0.7)), rel=1e-14)
    p = 0.3
    assert loss.natural(torch.tensor([[p]])).item() == pytest.approx(math.log(p / (1 - p)), rel=1e-6)


# --- any potential ----------------------------------------------------------------------------------------------------


def test_a_quadratic_potential_has_the_inverse_quadratic_conjugate():
    loss, theta = POTENTIALS["quadratic"], outputs_of()
    inverse = torch.linalg.inv(MATRIX)
    torch.testing.assert_close(loss.mean(theta), theta @ inverse, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(loss.psi(theta), ((theta @ inverse) * theta).sum(1) / 2, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(loss.metric(theta), inverse.expand(N, K, K), rtol=1e-12, atol=1e-13)


def test_the_entropy_of_positive_means_is_poissons_even_far_out():
    ours, poisson = POTENTIALS["entropy"], bregman(family="poisson")
    theta = torch.tensor([[-15.0, 0.0, 4.0, 12.0]], dtype=torch.float64)
    torch.testing.assert_close(ours.mean(theta), theta.exp(), rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.psi(theta), poisson.psi(theta), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.metric(theta), poisson.metric(theta), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["quartic", "entropy"])
def test_a_conjugate_has_first_and_second_derivatives(name: str):
    loss, theta = POTENTIALS[name], outputs_of()[:1, :2].requires_grad_()
    assert gradcheck(loss.psi, theta)
    assert gradgradcheck(loss.psi, theta)
    assert gradcheck(loss.mean, theta)


def test_an_output_without_a_mean_is_refused():
    bounded = from_potential(lambda y: (1 + y.square()).sqrt().sum())  # its gradient lies between -1 and 1
    torch.testing.assert_close(bounded.mean(torch.tensor([[0.6]]).double()).item(), 0.75)
    with pytest.raises(ValueError, match=r"output \[2.0\].*outside the range"):
        bounded.mean(torch.tensor([[2.0]]).double())
    with pytest.raises(ValueError, match="interior="):
        from_potential(lambda y: y.log().sum()).mean(outputs_of())


# --- use --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_large_outputs_give_finite_losses_and_gradients(name: str):
    loss = bregman(family=name)
    size = 80.0 if name == "poisson" else 1e4
    theta = torch.tensor([[size, -size, 0.0, 1.0]], requires_grad=True)
    y = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    value = loss(theta, y)
    (gradient,) = torch.autograd.grad(value, theta)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(loss.metric_factor(theta)).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_a_plain_mean_over_samples(name: str):
    loss = bregman(family=name)
    check_mean(loss)
    check_additive(loss, outputs_of(), targets_of(name))


@pytest.mark.parametrize("loss", [*(bregman(family=name) for name in FAMILIES), squared_error(), cross_entropy()])
def test_many_networks_losses_are_taken_at_once(loss: Callable[[Tensor, Tensor], Tensor]):
    theta = torch.stack([outputs_of(seed) for seed in range(3)])
    y = theta.softmax(2).round()  # of 0 and 1
    if loss in (squared_error(), cross_entropy(), *(bregman(family=name) for name in FAMILIES[:2])):
        y = y.argmax(2)
    together = torch.func.vmap(torch.func.grad(loss))(theta, y)
    for gradient, t, target in zip(together, theta, y, strict=True):
        torch.testing.assert_close(gradient, torch.func.grad(loss)(t, target))


def test_a_recipe_names_it():
    assert call(bregman, family="poisson").target == "landscope.losses.bregman"
    weights: list[Tensor] = []
    for loss in (call(cross_entropy), call(bregman, family="categorical")):
        chosen = recipe(loss=loss, steps=10)
        training = begin(chosen, chosen.data(0, None))
        for _ in advance(training):
            pass
        weights.append(next(training.model.parameters()))
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bregman(family="gamma"), "'squared', 'categorical', 'bernoulli', 'poisson'"),
        (lambda: bregman(family="poisson")(outputs_of(), outputs_of()[:, :3]), r"needs targets of the same shape"),
        (lambda: bregman(family="bernoulli")(outputs_of(), torch.zeros(N, dtype=torch.long)), "needs targets of the"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_an_even_prediction_costs_the_logarithm_of_the_classes():
    loss = bregman(family="categorical")
    assert loss(torch.zeros(N, K), torch.arange(N) % K).item() == pytest.approx(math.log(K))


OUTSIDE: dict[str, tuple[str, Tensor]] = {
    "a class that is not there": ("squared", torch.tensor([0, 1, 7])),
    "a negative class": ("squared", torch.tensor([0, 1, -1])),
    "an ignored class": ("categorical", torch.tensor([0, 1, -100])),
    "a class too many": ("categorical", torch.tensor([0, 1, K])),
    "negative probabilities": ("categorical", torch.tensor([[0.5, 0.7, -0.2, 0.0]])),
    "counts for probabilities": ("categorical", torch.tensor([[1.0, 2.0, 0.0, 0.0]])),
    "signs": ("bernoulli", torch.tensor([[1, -1, 1, 1]])),
    "counts for a chance": ("bernoulli", torch.tensor([[3.0, 0.0, 1.0, 0.0]])),
    "negative counts": ("poisson", torch.tensor([[-2.0, 0.0, 1.0, 0.0]])),
    "nothing": ("squared", torch.tensor([[math.nan, 0.0, 1.0, 0.0]])),
    "outside of a potential": ("entropy", torch.tensor([[-2.0, 0.0, 1.0, 0.0]])),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_targets_outside_of_the_domain_are_refused(case: str):
    name, y = OUTSIDE[case]
    with pytest.raises(ValueError, match=rf"targets have to be .*; that of sample {len(y) - 1} is "):
        LOSSES[name](outputs_of()[: len(y)], y)


def test_squared_error_refuses_a_class_that_is_not_there():
    with pytest.raises(ValueError, match="class indices from 0 to 3; that of sample 1 is 4"):
        squared_error()(outputs_of()[:2], torch.tensor([0, 4]))


def test_rounded_probabilities_are_within_the_domain():
    y = outputs_of().float().softmax(1).half()
    assert torch.isfinite(bregman(family="categorical")(outputs_of(), y.float()))


@pytest.mark.parametrize("theta", [[0.0, 0.0], [0.0, 8.0], [27.0, -1.0]])
def test_a_potential_may_have_a_singular_hessian_at_a_point(theta: list[float]):
    loss = from_potential(lambda y: y.pow(4).sum() / 4)  # singular at 0, where the steps begin
    outputs = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
    roots = outputs.detach().sign() * outputs.detach().abs().pow(1 / 3)
    torch.testing.assert_close(loss.mean(outputs), roots, rtol=1e-10, atol=1e-12)
    psi = loss.psi(outputs).sum()
    torch.testing.assert_close(psi, roots.pow(4).sum() * 3 / 4)
    torch.testing.assert_close(torch.autograd.grad(psi, outputs)[0], roots, rtol=1e-10, atol=1e-12)


def test_steps_along_a_singular_direction_that_is_no_axis():
    loss = from_potential(lambda y: (y[0] + 3 * y[1]).square() / 2 + (3 * y[0] - y[1]).pow(4) / 4)
    theta = torch.tensor([[0.1, 0.3], [0.4, 0.2]], dtype=torch.float64, requires_grad=True)
    mu = loss.mean(theta)
    psi = loss.psi(theta)
    torch.testing.assert_close(torch.autograd.grad(psi.sum(), theta)[0], mu, rtol=1e-9, atol=1e-8)  # damped
    torch.testing.assert_close(psi + loss.phi(mu), (theta * mu).sum(1), rtol=1e-10, atol=1e-12)
    back = torch.func.vmap(torch.func.grad(lambda y: loss.phi(y[None])[0]))(mu.detach())
    torch.testing.assert_close(back, theta.detach(), rtol=1e-9, atol=1e-11)


def test_an_infinite_metric_is_refused():
    with pytest.raises(ValueError, match=r"metric is infinite at the output \[0.0, 1.0\]"):
        from_potential(lambda y: y.pow(4).sum()).metric(torch.tensor([[0.0, 1.0]]))
