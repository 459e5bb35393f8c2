"""Data sets that are drawn rather than read; the generators are exactly reproducible on a CPU."""

from pathlib import Path

import numpy as np

from landscope.data.sets import Data, batches, check_sizes, gathered, stream, with_label_noise

SWISS_ROLLS = ("noisy", "minefield")


def swiss_roll_points(
    seed: int, purpose: str, *, per_class: int, variant: str, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Points of the swiss roll, shape ``[2 * per_class, 2]``, and their labels: all of class 0, then all of class 1.

    Class 1 is the exact point reflection of class 0, noise included. ``"noisy"``: (-1.5 a cos a, 1.5 a sin a) at the
    angles a = sqrt(U) 600°, in radians. ``"minefield"``: radius 5 sqrt(a) at the angles a = 3π t / per_class,
    t = 0 … per_class - 1, without any draw but the noise. Fresh points (for poison) come from another ``purpose``.
    """
    rng = stream(seed, f"{purpose} noise")
    if variant == "noisy":
        angle = np.sqrt(stream(seed, f"{purpose} angles").random(per_class)) * np.deg2rad(600)
        first = 1.5 * angle[:, None] * np.stack([-np.cos(angle), np.sin(angle)], axis=1)
    elif variant == "minefield":
        angle = np.arange(per_class) * (3 * np.pi / max(per_class, 1))
        first = 5 * np.sqrt(angle)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        raise ValueError(f"variant is one of {', '.join(SWISS_ROLLS)}, not {variant!r}")
    first = first + noise * rng.standard_normal((per_class, 2))
    return np.concatenate([first, -first]), np.repeat([0, 1], per_class)


def swiss_roll(
    seed: int,
    cache: Path | None = None,
    /,
    *,
    variant: str = "noisy",
    train: int = 200,
    valid: int = 0,
    test: int = 200,
    noise: float = 0.5,
) -> Data:
    """Two interleaved spirals in the plane, inputs unscaled (radius up to 15.7).

    All points, half of them in each class, are drawn together (`swiss_roll_points`), shuffled and split without regard
    to class, as Huang et al. 2020 do: reflected twins can lie on both sides of the split. Their Figures 3, 5 and 6 are
    the defaults; their Figure 1 is ``variant="minefield", noise=0, train=132, valid=134, test=134``, where the 134 in
    between are the fixed poison set.

    Args:
        seed: Draws angles, noise and split.
        cache: Not used.
        variant: ``"noisy"`` (radius proportional to the angle, 1.67 turns) or ``"minefield"`` (its square root, 1.5).
        train: Training samples; with the others an even number.
        valid: Validation samples.
        test: Test samples.
        noise: Standard deviation of the noise on each coordinate.

    >>> swiss_roll(0)
    Data for classification: 200 training, 200 test samples of shape (2,), 2 outputs
    """
    check_sizes(train=train, valid=valid, test=test)
    total = train + valid + test
    if total % 2:
        raise ValueError(
            f"train + valid + test = {total}: give an even number, because each point comes with its reflection"
        )
    points, labels = swiss_roll_points(seed, "swiss roll", per_class=total // 2, variant=variant, noise=noise)
    order = np.argsort(stream(seed, "split").random(total), kind="stable")
    parts = np.split(order, [train, train + valid])
    return gathered(*(batches(points[part], labels[part]) for part in parts), outputs=2, task="classification")


def rings(
    seed: int, cache: Path | None = None, /, *, gap: float = 0.001, train: int = 130, valid: int = 0, test: int = 0
) -> Data:
    """The counterfactual of Huang et al. 2020, Figure 8: rings that only a network with no margin can separate well.

    Of 13 parts of ``train``, class 0 holds 4 on the circle of radius 0.4, class 1 holds 8 on radius 0.95 and 1 on
    radius 0.4 + gap, each of the last midway between two neighbours of class 0. At 130 these are 40, 80 and 10 points,
    evenly spaced from angle 0, at (r sin, r cos); nothing about them is random. Validation and test points lie on the
    same circles in the same proportions at uniformly random angles: ours, the paper has none.

    Args:
        seed: Draws the angles of validation and test points.
        cache: Not used.
        gap: Between the two inner rings; the paper pinches it to 0.001.
        train: Training samples: a multiple of 13.
        valid: Validation samples.
        test: Test samples.

    >>> rings(0, test=1300)
    Data for classification: 130 training, 1,300 test samples of shape (2,), 2 outputs
    """
    check_sizes(train=train, valid=valid, test=test)
    if train % 13:
        raise ValueError(f"train={train}: give a multiple of 13, for 4 parts inner, 8 outer and 1 pinched points")
    part = train // 13
    radius = np.repeat([0.4, 0.95, 0.4 + gap], [4 * part, 8 * part, part])
    turn = np.concatenate([np.arange(4 * part) / 4, np.arange(8 * part) / 8, np.arange(part) + 1 / 8]) / part
    label = np.repeat([0, 1, 1], [4 * part, 8 * part, part])
    sets = [batches(_on_circle(radius, turn), label)]
    for name, size in (("valid", valid), ("test", test)):
        ring = np.array([0, 1, 1] * 4 + [2])[np.arange(size) % 13]
        turn = stream(seed, f"rings {name}").random(size)
        sets.append(batches(_on_circle(np.array([0.4, 0.95, 0.4 + gap])[ring], turn), np.array([0, 1, 1])[ring]))
    return gathered(*sets, outputs=2, task="classification")


def _on_circle(radius: np.ndarray, turn: np.ndarray) -> np.ndarray:
    return radius[:, None] * np.stack([np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)], axis=1)


POLYNOMIALS = ("quadratic", "cubic", "continuous")


def polynomial(x: np.ndarray, *, variant: str = "quadratic") -> np.ndarray:
    """The noiseless functions of Taborsky & Hansen 2021, section 4.1.

    ``"quadratic"``: g(x) = 10 + 1.22 x². ``"cubic"``: h(x) = g(x) + 1.22 (x + 4)³ for x < 0, else g(x); it jumps down
    by 78.08 at 0. ``"continuous"`` (ours) takes these 78.08 off the left branch.

    >>> polynomial(np.array([-1e-9, 0.0]), variant="cubic").round(2).tolist()
    [88.08, 10.0]
    """
    if variant not in POLYNOMIALS:
        raise ValueError(f"variant is one of {', '.join(POLYNOMIALS)}, not {variant!r}")
    right = 10 + 1.22 * x**2
    if variant == "quadratic":
        return right
    left = right + 1.22 * (x + 4) ** 3 - (1.22 * 64 if variant == "continuous" else 0)
    return np.where(x < 0, left, right)


def noisy_polynomial(
    seed: int,
    cache: Path | None = None,
    /,
    *,
    variant: str = "quadratic",
    noise: float = 10.0,
    train: int = 100,
    valid: int = 100,
    test: int = 100,
    interval: tuple[float, ...] = (-8.0, 8.0),
    test_interval: tuple[float, ...] = (-2.0, 2.0),
    test_noise: float = 0.0,
    grid: bool = True,
) -> Data:
    """Regression on a function of `polynomial` plus N(0, noise²); inputs and targets unscaled, shape ``[n, 1]``.

    Taborsky & Hansen 2021 print the noise as N(0, 10²) and as N(0, 10): a standard deviation of 10 is the default, the
    other reading is ``noise=10**.5``. Their grid of 100 points on (-8, 8) includes both ends here. Test targets are
    noiseless unless ``test_noise`` is given, because noise would only add its variance to every test error.

    Args:
        seed: Draws the noise, of each set separately, and the inputs where ``grid`` is False.
        cache: Not used.
        variant: See `polynomial`.
        noise: Standard deviation of the noise on training and validation targets.
        train: Training samples on ``interval``.
        valid: Validation samples on ``interval``: the same grid with other noise.
        test: Test samples on ``test_interval``.
        interval: Where training and validation inputs lie.
        test_interval: Where test inputs lie.
        test_noise: Standard deviation of the noise on test targets.
        grid: Evenly spaced inputs; False draws them uniformly.

    >>> noisy_polynomial(0)
    Data for regression: 100 training, 100 validation, 100 test samples of shape (1,), 1 outputs
    """
    check_sizes(train=train, valid=valid, test=test)
    sets = []
    for name, size, ends, sd in (
        ("train", train, interval, noise),
        ("valid", valid, interval, noise),
        ("test", test, test_interval, test_noise),
    ):
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise ValueError(f"an interval is (low, high) with low < high, not {ends}")
        low, high = ends
        spread = np.linspace(0, 1, size) if grid else stream(seed, f"polynomial {name} inputs").random(size)
        x = (low + (high - low) * spread)[:, None]
        targets = polynomial(x, variant=variant)
        sets.append(batches(x, targets + sd * stream(seed, f"polynomial {name} noise").standard_normal((size, 1))))
    return gathered(*sets, outputs=1, task="regression")


def two_scales(
    seed: int,
    cache: Path | None = None,
    /,
    *,
    fast: int = 40,
    slow: int = 10,
    scale: float = 0.1,
    noise: float = 5**0.5,
    train: int = 200,
    valid: int = 0,
    test: int = 2000,
) -> Data:
    """Linear regression on features of two scales, which gradient descent learns one after the other.

    y = ⟨x, θ⟩ + N(0, noise²) with ``fast`` features N(0, 1) and ``slow`` features N(0, scale²), of which each group
    contributes a variance of 1 to y: θ is drawn anew by every seed and scaled so. Along gradient descent each group's
    excess risk falls from 1 to a minimum and rises to about noise² · features / train, the slow group's 1 / scale²
    times later. So the test error falls, rises and falls again: the superposition by which Heckel & Yilmaz ("Early
    stopping in deep networks: double descent and how to eliminate it", 2021, section 2) explain epoch-wise double
    descent; the sizes are ours. Validation and test targets are without noise: their loss is the excess risk.

    Args:
        seed: Draws θ, features and noise.
        cache: Not used.
        fast: Features of scale 1.
        slow: Features of the other scale.
        scale: Their standard deviation; 1 makes the groups alike, and the second descent goes away.
        noise: Standard deviation of the noise on training targets.
        train: Training samples.
        valid: Validation samples.
        test: Test samples.

    >>> two_scales(0)
    Data for regression: 200 training, 2,000 test samples of shape (50,), 1 outputs
    """
    check_sizes(train=train, valid=valid, test=test)
    if fast < 1 or slow < 1 or not scale > 0:
        raise ValueError(f"two groups have at least 1 feature each and a scale above 0, not {fast}, {slow} and {scale}")
    groups = np.split(stream(seed, "two scales truth").standard_normal(fast + slow), [fast])
    spread = np.repeat([1.0, scale], [fast, slow])
    truth = np.concatenate([group / np.linalg.norm(group) for group in groups]) / spread
    sets = []
    for name, size, sd in (("train", train, noise), ("valid", valid, 0.0), ("test", test, 0.0)):
        x = stream(seed, f"two scales {name}").standard_normal((size, fast + slow)) * spread
        error = stream(seed, f"two scales {name} noise").standard_normal(size)
        sets.append(batches(x, (x @ truth + sd * error)[:, None]))
    return gathered(*sets, outputs=1, task="regression")


# The strokes of the ten digits, twelve heights each, as the data set's definition gives them.
_STROKES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
_LONGEST = 12 + 60  # a template with the largest padding


def mnist1d(
    seed: int,
    cache: Path | None = None,
    /,
    *,
    train: int = 4000,
    valid: int = 1000,
    test: int = 1000,
    label_noise: float = 0.0,
    correlated_noise: float = 0.25,
    iid_noise: float = 0.02,
) -> Data:
    """MNIST-1D (Greydanus & Kobak, "Scaling down deep learning with MNIST-1D", 2020): 40 values a sample, 10 classes.

    A digit's stroke of 12 heights, standardised, started at 0 and divided by 6, is padded behind with 36 to 60 zeros,
    stretched to 72 values, scaled by 1 ± 0.2, rolled by 0 to 47 places, surrounded by noise smoothed with a Gaussian of
    width 2, given white noise, sheared by a slope in ± 0.375 and sampled at 40 places (linearly).
    Differences from the published generator: the three sets are separate draws, each with its classes balanced to
    within one sample, and all are standardised by mean and standard deviation of the training set, not of everything.

    Args:
        seed: Draws every sample.
        cache: Not used.
        train: Training samples; a smaller set is the beginning of a larger one, up to the standardisation.
        valid: Validation samples.
        test: Test samples.
        label_noise: Fraction of training labels redrawn, see `with_label_noise`.
        correlated_noise: Standard deviation of the surrounding noise before it is smoothed.
        iid_noise: Standard deviation of the white noise.

    >>> mnist1d(0, train=500, valid=0, test=100)
    Data for classification: 500 training, 100 test samples of shape (40,), 10 outputs
    """
    check_sizes(train=train, valid=valid, test=test)
    signals, labels = {}, {}
    for name, size in (("train", train), ("valid", valid), ("test", test)):
        labels[name] = np.arange(size) % 10
        signals[name] = _signals(seed, f"mnist1d {name}", labels[name], correlated_noise, iid_noise)
    mean, sd = signals["train"].mean(), signals["train"].std()
    labels["train"] = with_label_noise(seed, labels["train"], np.arange(train), fraction=label_noise, classes=10)
    sets = (batches((signals[name] - mean) / sd, labels[name]) for name in signals)
    return gathered(*sets, outputs=10, task="classification")


def _signals(seed: int, purpose: str, labels: np.ndarray, correlated: float, white: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    n = len(labels)
    strokes = np.array(_STROKES)
    strokes = (strokes - strokes.mean(1, keepdims=True)) / strokes.std(1, keepdims=True)
    strokes = (strokes - strokes[:, :1]) / 6 + 1e-8  # so that a stroke's own zeros count as stroke, not as surroundings
    padding, scale, roll, slope = stream(seed, f"{purpose} shape").random((n, 4)).T
    padded = np.zeros((n, _LONGEST))
    padded[:, :12] = strokes[labels]
    signals = _sampled(padded, np.linspace(0, 1, _LONGEST) * (11 + 36 + np.floor(padding * 25))[:, None])
    signals *= 1 + 0.4 * (scale - 0.5)[:, None]
    signals = np.take_along_axis(
        signals, (np.arange(_LONGEST) - np.floor(roll * 48)[:, None]).astype(int) % _LONGEST, 1
    )
    around = correlated * stream(seed, f"{purpose} correlated noise").standard_normal((n, _LONGEST))
    signals = np.where(signals != 0, signals, gaussian_filter1d(around, 2, axis=1) if n else around)
    signals += white * stream(seed, f"{purpose} iid noise").standard_normal((n, _LONGEST))
    signals -= 0.75 * (slope - 0.5)[:, None] * np.linspace(-0.5, 0.5, _LONGEST)
    return _sampled(signals, np.broadcast_to(np.linspace(0, _LONGEST - 1, 40), (n, 40)))


def _sampled(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Each row at its own fractional places, linearly."""
    below = np.minimum(np.floor(places).astype(int), rows.shape[1] - 2)
    part = places - below
    return np.take_along_axis(rows, below, 1) * (1 - part) + np.take_along_axis(rows, below + 1, 1) * part
