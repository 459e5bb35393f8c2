"""Directions: their law, and filter norms by hand."""

import torch

from landscope.directions import filter_normalised, gaussian


def test_the_numbers_are_standard_normal():
    x = gaussian({"w": torch.zeros(200, 500)}, seed=1)["w"].double()
    assert abs(x.mean().item()) < 4 / 100_000**0.5
    assert abs(x.var().item() - 1) < 4 * (2 / 100_000) ** 0.5


def test_precision_changes_nothing_but_rounding():
    single, double = (gaussian({"w": torch.zeros(3, 4, dtype=t)}, seed=1)["w"] for t in (torch.float32, torch.float64))
    assert double.dtype == torch.float64
    assert torch.equal(single.double(), double)


def test_each_kernel_of_a_convolution_gets_its_own_norm():
    weights = {"w": torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)), "b": torch.ones(4)}
    scaled = filter_normalised(gaussian(weights, seed=1), weights)
    for i in range(4):
        torch.testing.assert_close(scaled["w"][i].norm(), weights["w"][i].norm())
    assert not scaled["b"].any()


def test_a_filter_of_zeros_stays_where_it_is():
    weights = {"w": torch.zeros(2, 3)}
    assert not filter_normalised(gaussian(weights, seed=1), weights)["w"].any()
    assert torch.isfinite(filter_normalised(weights, {"w": torch.ones(2, 3)})["w"]).all()
