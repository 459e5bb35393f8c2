"""What surrounds a product does not change it: checkpointing, autocast, wrappers, inference mode; and its faces."""

import copy
import functools
import warnings
from typing import Any

import pytest
import torch
from cases import CLASSES, FEATURES, made, points, snapshot_of
from oracles import dense_hessian
from test_curvature_modes import Once, whole
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from landscope.curvature import ggn, hessian
from landscope.curvature.batches import check_readable
from landscope.curvature.memory import budget, limits
from landscope.curvature.modes import DIFFERENCES
from landscope.engine import measure as measured
from landscope.losses import cross_entropy, squared_error
from landscope.measures import keskar_sharpness, worst_case_sharpness
from landscope.models import mlp, seeded

X, Y = points()
X = X.double()
PLAIN = "double backward"


@pytest.fixture(autouse=True)
def _forked():
    with seeded(3):
        yield


class Checkpointed(nn.Module):
    """A layer that the backward pass computes again."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.a, self.b, self.again = nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES), again

    def _first(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        z: Any = checkpoint(self._first, x, use_reentrant=False) if self.again else self._first(x)
        return self.b(z * z)


def checkpointed() -> tuple[nn.Module, nn.Module]:
    plain, again = Checkpointed(again=False).double(), Checkpointed(again=True).double()
    again.load_state_dict(plain.state_dict())
    return plain, again


@pytest.mark.parametrize("mode", ["auto", PLAIN, DIFFERENCES])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_activation_checkpointing_changes_nothing(mode: str, dtype: torch.dtype):
    plain, again = (model.to(dtype) for model in checkpointed())
    expected = dense_hessian(copy.deepcopy(plain), cross_entropy(), (X, Y))
    op = hessian(again, cross_entropy(), (X, Y), mode=mode, dtype=torch.float64)
    for _ in range(2):
        assert (whole(op) - expected).norm() < (1e-6 if mode == DIFFERENCES else 1e-9) * expected.norm()
    g, known = (ggn(model, cross_entropy(), (X, Y), dtype=torch.float64) for model in (again, plain))
    torch.testing.assert_close(g.dense(), known.dense())


def test_sharpness_under_activation_checkpointing():
    found = []
    for model in checkpointed():
        snapshot = snapshot_of(model, (X, Y))
        worst = worst_case_sharpness(snapshot, l2=(1.0, 4.0), linf=(), steps=5)
        keskar = keskar_sharpness(snapshot, epsilons=(0.3,))
        found.append({name: value for name, value in (worst | keskar).items() if isinstance(value, (float, Tensor))})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, equal_nan=True)


def test_autocast_inference_mode_and_no_grad_around_a_product():
    model, (x, y) = made("mlp", torch.float32)
    v = torch.ones(sum(p.numel() for p in model.parameters()))
    expected = hessian(model, cross_entropy(), (x, y), mode=PLAIN) @ v
    for around in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.no_grad()):
        with around:
            op = hessian(model, cross_entropy(), (x.clone(), y.clone()), mode=PLAIN)
            torch.testing.assert_close(op @ torch.ones(op.dim), expected, rtol=0, atol=1e-7)
            value, gradient = op.gradient()
            assert value > 0
            assert gradient.norm() > 0
    with torch.inference_mode():
        born = copy.deepcopy(model)
    torch.testing.assert_close(hessian(born, cross_entropy(), (x, y), mode=PLAIN) @ v, expected, rtol=0, atol=1e-7)


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def test_wrapped_and_compiled_networks():
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
    expected = dense_hessian(model, cross_entropy(), (X, Y))
    inside = nn.Sequential(model[0], model[1], compiled(model[2]))
    in_place = copy.deepcopy(model)
    in_place.compile(backend="aot_eager")
    for wrapped in (compiled(model), nn.DataParallel(model), inside, in_place):
        op = hessian(wrapped, cross_entropy(), (X, Y))
        torch.testing.assert_close(whole(op), expected)
        if wrapped is not inside:
            assert op.names == tuple(dict(model.named_parameters()))


class Activated(nn.Module):
    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.inner, self.activation = nn.Linear(FEATURES, CLASSES), [activation]  # in a list: no part of a signature

    def forward(self, x: Tensor) -> Tensor:
        return self.activation[0](self.inner(x))


def test_a_remembered_mode_that_fails_is_chosen_again():
    smooth, rough = Activated(torch.square).double(), Activated(Once.apply).double()
    rough.load_state_dict(smooth.state_dict())
    expected = dense_hessian(smooth, squared_error(), (X, Y))
    assert DIFFERENCES not in _mode_of(smooth)
    op = hessian(rough, squared_error(), (X, Y))
    with pytest.warns(UserWarning, match="central differences"):
        found = op @ torch.ones(op.dim).double()
    assert (found - expected.sum(1)).norm() < 1e-6 * expected.sum(1).norm()
    assert DIFFERENCES not in _mode_of(smooth)


def _mode_of(model: nn.Module) -> str:
    op = hessian(model, squared_error(), (X, Y))
    _ = op @ torch.ones(op.dim).double()
    return op.mode


def test_what_is_not_finite_is_reported_and_not_replaced():
    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).norm(dim=1).mean()

    model = nn.Linear(FEATURES, CLASSES, bias=False).double()
    target = model(X).detach()
    target[1:] += 1
    op = hessian(model, distance, (X, target))
    with pytest.raises(ValueError, match="NaN or infinite on the first batch"):
        _ = op @ torch.ones(op.dim).double()
    named = hessian(model, distance, (X, target), mode=PLAIN)
    assert bool((named @ torch.ones(op.dim).double()).isnan().any())


def test_the_default_budget_stays_within_a_container(tmp_path: Any):
    own, top = tmp_path / "cgroup", tmp_path / "mounted"
    (top / "a" / "b").mkdir(parents=True)
    (top / "memory" / "c").mkdir(parents=True)
    (top / "a" / "memory.max").write_text("4096\n")
    (top / "a" / "b" / "memory.max").write_text("max\n")
    (top / "memory" / "c" / "memory.limit_in_bytes").write_text("8192\n")
    own.write_text("0::/a/b\n5:cpu,memory:/c\n3:cpu:/d\n")
    assert sorted(limits(top, own)) == [4096, 8192]
    assert list(limits(top, tmp_path / "none")) == []
    assert budget(None, torch.device("cpu")) <= min([2**62, *limits()]) // 4
    assert budget(7, torch.device("cpu")) == 7


def padded() -> tuple[nn.Module, list[dict[str, Tensor]], Tensor]:
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.randint(0, CLASSES, (6, 5))
    y[0, 1:] = y[1, 3:] = y[4, 2:] = -100
    y[5] = -100
    batches = [{"ids": x[:4], "labels": y[:4]}, {"ids": x[4:5], "labels": y[4:5]}, {"ids": x[5:], "labels": y[5:]}]
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, CLASSES)).double(), batches, y


def rows(model: nn.Module, batch: Any) -> Any:
    labels = batch["labels"].flatten()
    return model(batch["ids"]).flatten(0, 1), labels, labels != -100


@pytest.mark.parametrize("mode", ["auto", "one column at a time", "batched columns"])
def test_the_gauss_newton_matrix_of_padded_tokens(mode: str):
    model, batches, y = padded()
    kept = y.flatten() != -100
    x = torch.cat([batch["ids"] for batch in batches]).flatten(0, 1)[kept]
    expected = ggn(model, cross_entropy(), (x, y.flatten()[kept]))
    op = ggn(model, cross_entropy(), batches, batch_outputs=rows, mode=mode)
    assert op.samples == kept.sum()
    torch.testing.assert_close(op.dense(), expected.dense())
    torch.testing.assert_close(op.gradient()[1], expected.gradient()[1])
    torch.testing.assert_close(sum(weight * part.dense() for weight, part in op.parts()), expected.dense())
    assert op.exact_trace() is None


def test_batch_outputs_are_checked():
    model, batches, _ = padded()
    with pytest.raises(ValueError, match="it has to return the triple"):
        ggn(model, cross_entropy(), batches, batch_outputs=lambda m, b: m(b["ids"]))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"a tensor of bools of shape \[20\], not torch.float32 \[20\]"):
        ggn(model, cross_entropy(), batches, batch_outputs=lambda m, b: (*rows(m, b)[:2], torch.ones(20)))
    with pytest.raises(ValueError, match="mode is one of auto, one column at a time, batched columns, not 'fast'"):
        ggn(model, cross_entropy(), batches, batch_outputs=rows, mode="fast")


def test_dense_scipy_and_named_parts():
    from scipy.sparse.linalg import eigsh

    model = mlp((FEATURES,), CLASSES, widths=(4,)).double()
    expected = dense_hessian(model, cross_entropy(), (X, Y))
    op = hessian(model, cross_entropy(), (X, Y))
    assert op.shape == (op.dim, op.dim)
    torch.testing.assert_close(op.dense(columns=7), expected)
    values = torch.from_numpy(eigsh(op.to_scipy(), k=2, which="LA", return_eigenvectors=False)).sort().values
    torch.testing.assert_close(values, torch.linalg.eigvalsh(expected)[-2:])
    v = torch.randn(op.dim, dtype=torch.float64)
    parts = op.named(v)
    assert {n: p.shape for n, p in parts.items()} == {n: p.shape for n, p in model.named_parameters()}
    assert torch.equal(op.flat(parts), v)
    assert torch.equal(op.flat(model.state_dict()), op.point())
    with pytest.raises(ValueError, match="given is nothing"):
        op.flat({})
    with pytest.raises(ValueError, match="is split by parameters"):
        op.named(v[:3])
    large = hessian(nn.Linear(200, 100), squared_error(), (torch.ones(2, 200), torch.ones(2, 100)))
    with pytest.raises(ValueError, match="20,100 rows"):
        large.dense()


def meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(FEATURES, CLASSES)


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.LazyLinear(CLASSES))


NET = nn.Linear(FEATURES, CLASSES).double()


@pytest.mark.parametrize(
    ("model", "data", "settings", "message"),
    [
        (NET, (X, Y), {"params": []}, "params chooses nothing"),
        (meta(), (X, Y), {}, "on the meta device"),
        (lazy(), (X, Y), {}, "have no shape yet"),
    ],
    ids=["no params", "meta", "lazy"],
)
def test_what_cannot_be_measured_says_why(model: nn.Module, data: Any, settings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        hessian(model, cross_entropy(), data, **settings)


def test_data_that_are_no_batches():  # called from outside the tests' type checks, which come first
    with pytest.raises(ValueError, match="a TensorDataset, which gives single samples"):
        check_readable(TensorDataset(X, Y))
    with pytest.raises(TypeError, match=r"a pair of tensors .* not int"):
        check_readable(3)


def test_losses_without_the_parameters_in_their_graph():
    for make in (hessian, ggn):
        op = make(nn.Sequential(NET, Detached()), cross_entropy(), (X, Y))
        with pytest.raises(ValueError, match="does not depend on the chosen parameters"):
            _ = op @ torch.ones(op.dim).double()


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


def test_sparse_gradients_are_named():
    model = nn.Sequential(nn.EmbeddingBag(10, 4, sparse=True, mode="sum"), nn.Tanh(), nn.Linear(4, CLASSES))
    op = hessian(model, cross_entropy(), (torch.randint(0, 10, (23, 5)), Y))
    with pytest.raises(ValueError, match="sparse=False"):
        _ = op @ torch.ones(op.dim)


def test_weight_decay_over_parameters_taken_outside_is_refused():
    outside = list(NET.parameters())

    def loss(model: nn.Module, batch: Any, own: bool) -> Any:
        decay: Any = sum(p.square().sum() for p in (model.parameters() if own else outside))
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum") + len(X) * decay, len(X)

    wrong = hessian(NET, None, [(X, Y)], batch_loss=functools.partial(loss, own=False))
    with pytest.raises(ValueError, match="depends on the model's bias, weight not through the model"):
        _ = wrong @ torch.ones(wrong.dim).double()
    right = hessian(NET, None, [(X, Y)], batch_loss=functools.partial(loss, own=True))
    expected = dense_hessian(NET, cross_entropy(), (X, Y)) + 2 * torch.eye(right.dim).double()
    torch.testing.assert_close(whole(right), expected)


def test_weights_of_binary_cross_entropy_are_no_class_weights():
    weight, y = torch.tensor([2.0, 0.5, 1.0]).double(), (X[:, :CLASSES] > 0).double()
    bound = functools.partial(functional.binary_cross_entropy_with_logits, weight=weight)
    expected = dense_hessian(NET, bound, (X, y))
    for loss in (nn.BCEWithLogitsLoss(weight=weight), bound):
        torch.testing.assert_close(whole(hessian(NET, loss, [(X[:9], y[:9]), (X[9:], y[9:])])), expected)
    with pytest.raises(ValueError, match="divides by the weights"):
        hessian(NET, nn.CrossEntropyLoss(weight=weight), (X, Y))


class Counting(nn.Module):
    """Statistics by hand in every mode: batch_norm writes on them unseen by autograd's counters; one is replaced."""

    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("var", torch.ones(FEATURES))
        self.register_buffer("passes", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        self.passes = self.passes + 1
        return self.linear(functional.batch_norm(x, self.mean, self.var, training=True))


def test_statistics_that_a_forward_pass_writes_on_are_as_found():
    net, (x, y) = Counting(), points()
    found = [(buffer, buffer.clone()) for buffer in net.buffers()]

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        model.train()
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[0])

    def breaks(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        step(model, batch)
        raise ArithmeticError

    op = hessian(net, cross_entropy(), (x, y))
    _ = op @ torch.ones(op.dim)
    hessian(net, None, [(x, y)], batch_loss=step)
    measured(net, cross_entropy(), train=(x, y), test=(x, y), measures=["performance"])
    with pytest.raises(ArithmeticError):
        hessian(net, None, [(x, y)], batch_loss=breaks)
    assert net.training
    for (buffer, content), now in zip(found, net.buffers(), strict=True):
        assert now is buffer
        assert torch.equal(now, content)
