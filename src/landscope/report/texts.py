"""Numbers and names as the page and the exported files write them."""

import math
import re
from typing import Any

from landscope.spec import Claim
from landscope.stats import shown


def clean(text: str) -> str:
    """Text without control characters and without those that turn the direction of writing."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def slug(text: str) -> str:
    """Text as a part of a file name or an HTML id.

    >>> slug("Equal training loss (λ = 2)")
    'equal-training-loss-2'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "none"


def cell(value: Any) -> str:
    """A value as a cell of a table: five significant digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}".replace("-", "−")
    return str(value)


def compact(value: float | int) -> str:
    """A number in three significant digits without an exponent where that is readable.

    >>> compact(12000.0), compact(0.000625), compact(9.77e-6)
    ('12,000', '0.000625', '9.77e-06')
    """
    return f"{float(f'{value:.3g}'):,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def paper_number(claim: Claim) -> str:
    """The paper's number in as many digits as it was given with: it is a quotation, not an estimate."""
    if claim.paper is None:
        return ""
    if claim.unit == "ratio" and abs(claim.paper.value) < math.log(1e4):
        return f"×{math.exp(claim.paper.value):.4g}"
    return shown(claim, claim.paper.value)
