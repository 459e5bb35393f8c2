"""How products are made: every mode gives the same, nothing grows, randomness is reported, processes share the work."""

import gc
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CLASSES, FEATURES, made, points
from oracles import dense_hessian
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from landscope.curvature import MODES, fisher, ggn, hessian
from landscope.curvature.modes import COMPILED, DIFFERENCES, choose
from landscope.losses import cross_entropy, squared_error
from landscope.models import cnn, mlp, seeded
from landscope.types import Batches


@pytest.fixture(autouse=True)
def _forked():
    with seeded(3):
        yield


def whole(op: Any) -> Tensor:
    return op @ torch.eye(op.dim, dtype=op.dtype)


EXACT = [mode for mode in MODES if mode not in (COMPILED, DIFFERENCES)]


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("which", ["cnn", "tied", "noisy"])
def test_every_mode_gives_the_dense_matrix(which: str, mode: str):
    model, data = made(which)
    expected = dense_hessian(model, cross_entropy(), data)
    op = hessian(model, cross_entropy(), Batches(*data, 9), mode=mode)
    assert op.mode == mode
    some = torch.randn(op.dim, 3, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(op @ some, expected @ some, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(op @ some[:, 0], expected @ some[:, 0], rtol=1e-8, atol=1e-10)


COMPILING = """
import torch
from cases import points
from oracles import dense_hessian
from landscope.curvature import hessian
from landscope.curvature.modes import COMPILED
from landscope.losses import squared_error
torch.manual_seed(0)
x, y = points()
model, loss = torch.nn.Linear(x.shape[1], 1, bias=False).double(), squared_error()  # what compiles soonest
data = x.double(), y.double()[:, None]
expected, some = dense_hessian(model, loss, data), torch.randn(x.shape[1], 2, dtype=torch.float64)
op = hessian(model, loss, data, mode=COMPILED)
torch.testing.assert_close(op @ some, expected @ some, rtol=1e-8, atol=1e-10)
print(op.mode)
"""


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="compiling needs a C++ compiler")
def test_compiled_products_are_those_of_the_dense_matrix(root: Path, tmp_path: Path):
    """In a process of its own: the compiler cannot see through the checks of types that tests add."""
    settings = {
        "PYTHONPATH": str(root / "tests"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        # Plain instructions in this process: to find out which ones the machine has takes minutes of compiling.
        **{"TORCHINDUCTOR_VEC_ISA_OK": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
    }
    done = subprocess.run([sys.executable, "-c", COMPILING], env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == COMPILED
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"


def test_differences_are_normalised_so_that_the_length_of_a_vector_does_not_matter():
    model, data = made("tied")
    expected = dense_hessian(model, cross_entropy(), data)
    op = hessian(model, cross_entropy(), Batches(*data, 9), mode=DIFFERENCES)
    v = torch.randn(op.dim, dtype=torch.float64)
    for length in (1e-6, 1.0, 1e6):
        assert (op @ (length * v) / length - expected @ v).norm() < 1e-6 * (expected @ v).norm()
    assert not (op @ torch.zeros_like(v)).any()


class Once(torch.autograd.Function):
    """A square without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * ctx.saved_tensors[0] * grad_outputs[0]


def test_without_second_derivatives_differences_are_taken():
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(FEATURES, 1)

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.inner(x))  # type: ignore[return-value]

    x, y = torch.randn(9, FEATURES, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)
    model = Squared().double()
    op = hessian(model, squared_error(), (x, y))
    plain = nn.Sequential(model.inner)
    expected = dense_hessian(plain, lambda z, t: squared_error()(z.square(), t), (x, y))
    with pytest.warns(UserWarning, match="central differences .* about 4e-11 at best: .* once_differentiable"):
        found = whole(op)
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert DIFFERENCES in op.mode
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        _ = op @ torch.ones(op.dim, dtype=torch.float64)


def test_a_mode_with_other_numbers_is_not_chosen(monkeypatch: pytest.MonkeyPatch):
    model, data = made("mlp")
    op = hessian(model, cross_entropy(), data)
    honest = MODES["double backward"]

    def wrong(*args: Any) -> Any:
        value, product = honest.make(*args)
        return value, lambda rows: 1.01 * product(rows)

    def skewed(*args: Any) -> Any:
        value, product = honest.make(*args)
        return value, lambda rows: product(rows).roll(1, 1)

    def broken(*args: Any) -> Any:
        raise RuntimeError("no kernel for this")

    with op.problem.quiet():
        modes = {"honest": honest} | {f.__name__: honest._replace(make=f) for f in (wrong, skewed, broken)}
        for k in (1, 3):
            assert choose(op.problem, data, k, modes).name == "honest"
            without = {name: mode for name, mode in modes.items() if name not in ("honest", "wrong")}
            assert choose(op.problem, data, k, {**without, DIFFERENCES: honest}).name == DIFFERENCES  # symmetry alone


def test_the_choice_is_remembered(monkeypatch: pytest.MonkeyPatch):
    model, data = made("mlp")
    first = hessian(model, cross_entropy(), data)
    one = torch.ones(first.dim, dtype=torch.float64)
    _ = first @ one
    monkeypatch.setattr("landscope.curvature.modes._tried", None)
    again = hessian(model, cross_entropy(), data)
    _ = again @ one
    assert again.mode == first.mode


def test_changed_weights_and_data_are_seen():
    net, (x, y) = made("mlp")
    model: Any = net
    x = x.clone()
    op = hessian(model, cross_entropy(), Batches(x, y, 9))
    v = torch.randn(op.dim, dtype=torch.float64)
    for change in (lambda: model[1].weight.data.mul_(1.5), lambda: x.mul_(1.2)):
        _ = op @ v
        with torch.no_grad():
            change()
        expected = dense_hessian(model, cross_entropy(), (x, y)) @ v
        torch.testing.assert_close(op @ v, expected, rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        model[1].weight.copy_(torch.randn_like(model[1].weight))
    torch.testing.assert_close(op @ v, dense_hessian(model, cross_entropy(), (x, y)) @ v, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("memory", [None, 10_000])
def test_repeated_products_hold_no_more_tensors(memory: int | None):
    model, data = made("cnn", torch.float32)
    op = hessian(model, cross_entropy(), Batches(*data, 9), mode="batched rewritten double backward", memory=memory)
    v = torch.randn(op.dim, 2)

    def held() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())  # isinstance would ask proxies

    _ = op @ v
    before = held()
    for _ in range(3):
        _ = op @ v
    assert held() == before
    assert bool(op.state.kept.made) == (memory is None)
    assert op.products == 8


def test_columns_go_through_in_chunks_that_fit_the_memory(monkeypatch: pytest.MonkeyPatch):
    model, data = made("cnn")
    expected = dense_hessian(model, cross_entropy(), data)
    small = hessian(model, cross_entropy(), Batches(*data, 9), mode="batched double backward", memory=1)
    torch.testing.assert_close(whole(small), expected, rtol=1e-8, atol=1e-10)
    assert small._width() == 1
    assert hessian(model, cross_entropy(), data, memory=2**30)._width() > 100
    with pytest.raises(ValueError, match="at least 1, not 0"):
        hessian(model, cross_entropy(), data, memory=0)


def test_a_random_loss_is_reported_before_anything_is_returned():
    x, y = points()
    model = mlp((FEATURES,), CLASSES, widths=(4,))
    draws = torch.Generator().manual_seed(0)

    class Augmented(list):
        def __iter__(self):
            return ((x + 0.01 * torch.randn(x.shape, generator=draws), y) for _ in range(2))

    for make in (hessian, ggn, fisher):
        op = make(model, cross_entropy(), Augmented())
        with pytest.raises(ValueError, match="it is random"):
            _ = op @ torch.ones(op.dim)


def test_the_trace_is_exact_where_it_is_known():
    for which, known in (("mlp", True), ("cnn", True), ("noisy", False), ("tied", False)):
        model, data = made(which)
        for loss in (cross_entropy(), squared_error()):
            h, g = hessian(model, loss, Batches(*data, 9)), ggn(model, loss, Batches(*data, 9))
            if known:
                assert h.exact_trace() == pytest.approx(whole(h).trace().item(), rel=1e-10)
            else:
                assert h.exact_trace() is None  # a tangent, a matrix used twice
            if which != "tied":
                assert g.exact_trace() == pytest.approx(whole(g).trace().item(), rel=1e-10)
        own = hessian(model, lambda z, t: functional.cross_entropy(z, t), data)
        assert own.exact_trace() is None
    assert fisher(model, cross_entropy(), data).exact_trace() is None


def test_the_exact_trace_of_chosen_parameters_strides_groups_and_positions():
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Conv2d(4, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    x, y = torch.randn(9, 2, 8, 8, dtype=torch.float64), torch.randint(0, 3, (9,))
    for chosen in (None, "*.weight", "1", "*.bias", "0.weight"):
        h = hessian(model, cross_entropy(), Batches(x, y, 4), params=chosen)
        assert h.exact_trace() == pytest.approx(whole(h).trace().item(), rel=1e-10)
    assert not any(m._forward_hooks for m in model.modules())
    spread = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3)).double()
    h = hessian(spread, cross_entropy(), (torch.randn(9, 3, 4, dtype=torch.float64), y))
    assert h.exact_trace() == pytest.approx(whole(h).trace().item(), rel=1e-10)


def _process(rank: int, address: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model, (x, y) = made("cnn")
    group = torch.distributed.group.WORLD
    mine = slice(0, 14) if rank == 0 else slice(14, 23)
    reduced: list[int] = []
    original = torch.distributed.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        reduced.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    data = Batches(x[mine], y[mine], 5)
    h, g = (make(model, cross_entropy(), data, group=group) for make in (hessian, ggn))
    v = torch.randn(h.dim, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one_has_all = hessian(model, cross_entropy(), Batches(x, y, 5) if rank == 0 else [], group=group)
    reduced.clear()
    product = h @ v
    one = list(reduced)
    found = {
        "h": product,
        "g": g @ v,
        "reduced": one,
        "trace": h.exact_trace(),
        "gradient": h.gradient(),
        "n": h.samples,
        "one has all": one_has_all @ v,
    }
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path: Any):
    address = f"file://{tmp_path}/meeting"
    spawn(_process, (address, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    model, data = made("cnn")
    h, g = (make(model, cross_entropy(), data) for make in (hessian, ggn))
    v = torch.randn(h.dim, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found["h"], h @ v)
    torch.testing.assert_close(found["one has all"], h @ v)
    torch.testing.assert_close(found["g"], g @ v)
    assert found["reduced"] == [3 * h.dim]
    assert found["n"] == 23
    assert math.isclose(found["trace"], h.exact_trace() or math.nan, rel_tol=1e-10)
    assert math.isclose(found["gradient"][0], h.gradient()[0], rel_tol=1e-10)


def test_bad_settings_are_named():
    model, data = cnn((1, 8, 8), CLASSES, channels=1), (torch.randn(3, 1, 8, 8), torch.zeros(3, dtype=torch.long))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mode": "fast"}, "mode is one of auto, double backward"),
        ({"batchnorm": "train"}, '"eval" or "frozen"'),
        ({"batch_loss": lambda m, b: (0, 0)}, "give either loss"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            hessian(model, cross_entropy(), data, **settings)
    with pytest.raises(ValueError, match='"empirical" or "monte_carlo"'):
        fisher(model, cross_entropy(), data, kind="true")
    with pytest.raises(ValueError, match="has to return the pair"):
        hessian(model, None, data, batch_loss=lambda m, b: m(b[0]).sum())  # type: ignore[arg-type, return-value]
    drawn = fisher(model, lambda z, t: z.square().mean(), data, kind="monte_carlo")
    with pytest.raises(ValueError, match="known for the plain cross-entropy"):
        _ = drawn @ torch.ones(drawn.dim)
