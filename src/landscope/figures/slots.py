"""The looks of series: colour, dash and marker by a stable number, also for grey prints and colour-blind eyes."""

from dataclasses import dataclass

Number = float | int
REFERENCE = -1  # the slot of lines that are no data: a null, a threshold, a published number


@dataclass(frozen=True)
class Slot:
    """How one series looks, the same in every figure: colour in both themes, dash, marker.

    Args:
        light: Colour on white, ``#rrggbb``; at least 3:1.
        dark: Colour on the dark page; at least 3:1.
        dash: Lengths of stroke and gap in points; empty is a solid line.
        marker: One of circle, square, diamond, triangle-up, triangle-down, cross, x, pentagon, star, hexagon.
    """

    light: str
    dark: str
    dash: tuple[Number, ...]
    marker: str


# Any two differ by at least 10 (CIEDE2000) for normal and for colour-blind eyes (Machado et al. 2009).
SLOTS = (
    Slot("#135fca", "#169aff", (), "circle"),
    Slot("#a13500", "#df4e05", (), "square"),
    Slot("#0e8a74", "#45c8ac", (), "diamond"),
    Slot("#7c3679", "#e39edb", (), "triangle-up"),
    Slot("#a47600", "#e2c041", (), "triangle-down"),
    Slot("#7285e9", "#cee8ff", (6, 2), "cross"),
    Slot("#e22661", "#ff6692", (6, 2), "pentagon"),
    Slot("#566e45", "#c7d299", (6, 2), "star"),
    Slot("#0f1562", "#8885bc", (6, 2), "hexagon"),
    Slot("#3f2619", "#cc8f61", (6, 2), "x"),
)
NEUTRAL = Slot("#5f666d", "#a3abb3", (3, 2), "x")


def slot(number: int) -> Slot:
    """The look of slot ``number``: 0 to 9, or `REFERENCE`.

    >>> slot(0).marker
    'circle'
    """
    if number == REFERENCE:
        return NEUTRAL
    if not 0 <= number < len(SLOTS):
        raise ValueError(f"a slot is a number from 0 to {len(SLOTS) - 1}, or {REFERENCE} for reference lines: {number}")
    return SLOTS[number]
