"""What is asked of an algorithm, checked before the first product."""

from landscope.types import Operator


def check_operator(op: Operator) -> None:
    """Refuse what is no Operator, such as a matrix itself.

    Raises:
        TypeError: for anything without a whole number ``dim``, a ``dtype`` and a ``device``.
    """
    dim = getattr(op, "dim", None)
    if isinstance(dim, bool) or not isinstance(dim, int) or not hasattr(op, "dtype") or not hasattr(op, "device"):
        raise TypeError(
            f"an operator has a whole number `dim`, a `dtype`, a `device` and `@`, and a {type(op).__name__} does not: "
            "take landscope.hessian(…) or its like, or put a matrix into a class of yours that has these four"
        )


def check_whole(least: int, /, **given: object) -> None:
    """Refuse settings that are no whole numbers, or too small.

    Args:
        least: The least that is allowed.
        given: The settings by name.

    Raises:
        TypeError: for what is no whole number.
        ValueError: for what is too small.
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is a whole number, not {value!r}")
        if value < least:
            raise ValueError(f"{name} is at least {least}, not {value}")


def check_seed(seed: object) -> None:
    """Refuse a seed that is no whole number: the same draws must come from it every time.

    Raises:
        TypeError: for None, too; there is no global generator to fall back to.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"a seed is a whole number, the same one for the same draws, not {seed!r}")
