"""Neural tangent kernels: of a network as it is, of infinitely wide ones, and what they predict of training."""

from landscope.kernels.empirical import ntk
from landscope.kernels.infinite import infinite_ntk, nngp
from landscope.kernels.linearised import KernelSystem, alignment, cosine, drift, linearised_outputs

__all__ = ["KernelSystem", "alignment", "cosine", "drift", "infinite_ntk", "linearised_outputs", "nngp", "ntk"]
