"""Training many networks as one program: recipes that differ in numbers alone, each as if it were trained alone.

All parameters of all members lie in one tensor, a row for each; gradients come from written-out batched layers or from
`torch.func.vmap`, updates from the rules in `optimizers.updates`. A member's numbers depend on its own row alone, to
the bit: not on how many members there are, nor on which.
"""

from landscope.population.checks import alone_because
from landscope.population.states import checkpoint, restore, state_of
from landscope.population.structure import check_stackable, structure_key, unstackable
from landscope.population.training import Population, advance, begin, evaluate

__all__ = [
    "Population",
    "advance",
    "alone_because",
    "begin",
    "check_stackable",
    "checkpoint",
    "evaluate",
    "restore",
    "state_of",
    "structure_key",
    "unstackable",
]
