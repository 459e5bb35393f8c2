"""Empirical tangent kernels against dense Jacobians in float64, and everything left as it was."""

from typing import Any

import pytest
import torch
from cases import CLASSES, MADE, everything, made, same
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from landscope.curvature import space_of
from landscope.kernels import ntk
from landscope.kernels.following import follow
from landscope.layers import Residual
from landscope.models import cnn, mlp, resnet, seeded, wide_mlp


@pytest.fixture(autouse=True)
def _forked():
    with seeded(0):
        yield


def dense(model: nn.Module, x1: Tensor, x2: Tensor, names: Any = None) -> Tensor:
    """The kernel ``[n1, n2, O, O]`` from whole Jacobians, one sample after the other, in eval mode."""
    model.eval()
    weights = [p for n, p in model.named_parameters() if names is None or n in names]

    def rows(x: Tensor) -> Tensor:
        found = []
        for i in range(len(x)):
            outputs = model(x[i : i + 1]).reshape(-1)
            grads = [torch.autograd.grad(f, weights, retain_graph=True, allow_unused=True) for f in outputs]
            whole = [
                [torch.zeros_like(w) if g is None else g for g, w in zip(one, weights, strict=True)] for one in grads
            ]
            found.append(torch.stack([torch.cat([g.reshape(-1) for g in one]) for one in whole]))
        return torch.stack(found)

    return torch.einsum("nap,mbp->nmab", rows(x1), rows(x2))


class Wild(nn.Module):
    """An embedding tied to the output, a recurrent layer, one linear layer used twice, another's weight used bare."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4, padding_idx=0)
        self.middle = nn.LSTM(4, 4, batch_first=True)
        self.twice, self.bare = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.embed(x))[0]
        h = self.twice(torch.tanh(self.twice(h)))
        h = self.norm(self.bare(h) + h @ self.bare.weight)
        return self.out(h).mean(1)


class Folded(nn.Module):
    """Samples and places in one dimension, and a layer that has the samples second: neither can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        h = torch.tanh(self.first(x.transpose(0, 1).reshape(t * n, -1))).reshape(t, n, -1)
        return self.last(torch.tanh(self.second(h)).mean(0))


def conv(**settings: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3, **settings), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(3, 6), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda: mlp((7,), 3, widths=(5, 6)), (7,)),
    "BatchNorm": (lambda: mlp((7,), 3, widths=(5,), batchnorm=True), (7,)),
    "NTK parametrisation": (lambda: wide_mlp((7,), 3, width=6, parametrisation="ntk", bias_variance=0.3), (7,)),
    "cnn": (lambda: cnn((1, 8, 8), 3, channels=2, hidden=4), (1, 8, 8)),
    "resnet": (lambda: resnet((3, 8, 8), 3, depth=8, channels=4), (3, 8, 8)),
    "stride and dilation": (lambda: conv(stride=(2, 1), dilation=(1, 2), padding=(1, 2)), (4, 7, 6)),
    "groups": (lambda: conv(groups=2, padding="same"), (4, 5, 5)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Flatten(), nn.Tanh()), (4, 5, 5)),
    "circular": (lambda: conv(padding=1, padding_mode="circular"), (4, 5, 5)),
    "reflected": (lambda: conv(padding=1, padding_mode="reflect"), (4, 5, 5)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3, 2), nn.Tanh(), nn.Conv1d(3, 2, 2), nn.Flatten()), (2, 9)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2, padding=1), nn.Flatten(), nn.LazyLinear(2)), (1, 3, 3, 3)),
    "GroupNorm": (grouped, (4, 5, 5)),
    "LayerNorm": (lambda: nn.Sequential(nn.LayerNorm([3, 4]), nn.Flatten(), nn.RMSNorm(12), nn.Linear(12, 3)), (3, 4)),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Flatten()), (5, 4)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), (3, 4)),
    "folded": (Folded, (4, 4)),
    "folded, as long as it is wide": (Folded, (3, 4)),  # what the trial pass takes for samples, its check does not
}  # fmt: skip
FOLLOWED = {
    "attention": 4,
    "folded": 1,
    "folded, as long as it is wide": 0,
}  # of the layers with parameters; all of them elsewhere


@pytest.mark.parametrize("which", list(NETWORKS))
def test_the_kernel_is_that_of_whole_jacobians(which: str):
    make, shape = NETWORKS[which]
    model = make().double()
    x1, x2 = torch.randn(5, *shape, dtype=torch.float64), torch.randn(3, *shape, dtype=torch.float64)
    model(x1)  # lazy layers get their shapes, BatchNorm sees a batch
    layers = [m for m in model.modules() if list(m.parameters(recurse=False))]
    expected, alone = dense(model, x1, x2), dense(model, x1, x1)
    torch.testing.assert_close(ntk(model, x1, x2, trace_outputs=False), expected)
    torch.testing.assert_close(ntk(model, x1, x2), expected.diagonal(dim1=2, dim2=3).sum(-1))
    followed = follow(space_of(model), x1)
    assert len(followed.layers) == FOLLOWED.get(which, len(layers))
    two = 2 * 4 * 8 * (followed.numbers + followed.outputs * followed.rest_size)  # bytes for blocks of two samples
    for memory in (None, two):
        torch.testing.assert_close(ntk(model, x1, trace_outputs=False, memory=memory), alone)
        torch.testing.assert_close(ntk(model, x1, memory=memory), alone.diagonal(dim1=2, dim2=3).sum(-1))
    torch.testing.assert_close(ntk(model, x2, x1, memory=two), ntk(model, x1, x2).T)


@pytest.mark.parametrize("memory", [None, 300_000])
def test_tied_recurrent_and_bare_parameters_get_their_jacobian(memory: int | None):
    model, x = Wild().double(), torch.randint(0, 9, (4, 3))
    expected = dense(model, x, x)
    torch.testing.assert_close(ntk(model, x, trace_outputs=False, memory=memory), expected)
    torch.testing.assert_close(ntk(model, x, memory=memory), expected.diagonal(dim1=2, dim2=3).sum(-1))
    rest = follow(space_of(model), x).rest
    assert {name.partition(".")[0] for name in rest} == {"embed", "middle", "bare"}
    assert "bare.weight" in rest
    assert "bare.bias" not in rest


def test_an_embedding_is_followed_and_its_padding_left_out():
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Flatten(), nn.Linear(6, 2)).double()
    x = torch.tensor([[0, 1], [1, 1], [2, 2], [2, 0]])
    assert not follow(space_of(model), x).rest
    torch.testing.assert_close(ntk(model, x, trace_outputs=False), dense(model, x, x))


def test_layers_that_are_like_a_known_one_but_not_it_are_not_followed():
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    x = torch.randn(3, 4, dtype=torch.float64)
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)).double()
    hooked = nn.Linear(4, 2).double()
    hooked.register_forward_hook(lambda module, args, output: output.square())
    for model in (Doubled(4, 2).double(), weighted, hooked):
        assert not follow(space_of(model), x).layers
        torch.testing.assert_close(ntk(model, x, trace_outputs=False), dense(model, x, x))


def test_chosen_and_frozen_parameters():
    model = mlp((4,), 2, widths=(5, 3)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    for params, names in (
        ("1", {"1.weight", "1.bias"}),
        (["*.bias"], {"1.bias", "3.bias", "5.bias"}),
        ("5.weight", {"5.weight"}),
    ):
        torch.testing.assert_close(ntk(model, x, params=params, trace_outputs=False), dense(model, x, x, names))
    model[3].requires_grad_(False)
    torch.testing.assert_close(ntk(model, x), ntk(model, x, params=["1", "5"]))


@pytest.mark.parametrize("which", MADE)
def test_the_network_is_left_as_it_was(which: str):
    model, (x, _) = made(which)
    model.train()
    next(model.children()).eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = everything(model)
    first = ntk(model, x[:4], trace_outputs=False)
    assert same(everything(model), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert first.shape == (4, 4, CLASSES, CLASSES)
    torch.testing.assert_close(
        ntk(model.float(), x[:4].float(), trace_outputs=False).double(), first, rtol=1e-3, atol=1e-4
    )


def test_a_model_that_fails_is_left_as_it_was():
    class Fails(nn.Sequential):
        calls = 0

        def forward(self, input: Tensor) -> Tensor:
            Fails.calls += 1
            out = super().forward(input)
            if Fails.calls > 2:
                raise RuntimeError("inside the model")
            return out

    model, x = Fails(nn.Linear(3, 2), nn.Tanh()), torch.randn(3, 3)
    before = everything(model)
    with pytest.raises(RuntimeError, match="inside the model"):
        ntk(model, x)
    assert same(everything(model), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_kernel_is_a_gram_matrix():
    model = nn.Sequential(Residual(nn.Sequential(nn.Linear(6, 6), nn.ReLU())), nn.Linear(6, 3)).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    whole = ntk(model, x, trace_outputs=False)
    matrix = whole.transpose(1, 2).reshape(24, 24)
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix)[0] > -1e-10
    torch.testing.assert_close(whole.diagonal(dim1=2, dim2=3).sum(-1), ntk(model, x))


class Checkpointed(nn.Module):
    """Its first layer is called again on the way back."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again, self.first, self.last = again, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self._first, x, use_reentrant=False) if self.again else self._first(x)
        return self.last(h)

    def _first(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))


def test_layers_that_are_called_again_on_the_way_back_count_once():
    model, plain, x = Checkpointed(True), Checkpointed(False), torch.randn(4, 3)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(ntk(model, x), ntk(plain, x))


def test_what_surrounds_a_kernel_does_not_change_it():
    model, x = mlp((3,), 2, widths=(4,)), torch.randn(4, 3)
    expected = ntk(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ntk(model, x), expected)
    with torch.inference_mode():
        inside = x.clone()
        for given in (x, inside):
            found = ntk(model, given)
            assert torch.equal(found, expected)
            assert not found.is_inference()


# --- bad input ------------------------------------------------------------------------------------------------------


def test_what_has_no_kernel_is_refused():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="at least one input"):
        ntk(nn.Linear(4, 2), x[:0])
    with pytest.raises(ValueError, match=r"1 is a BatchNorm1d without running statistics.*other samples"):
        ntk(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)), x)
    with pytest.raises(ValueError, match=r"outputs of shape \(2,\) for 3 inputs"):
        ntk(nn.Sequential(nn.Linear(4, 2), Means()), x)
    with pytest.raises(TypeError, match=r"tensor of real numbers, not torch\.int64"):
        ntk(nn.Sequential(nn.Linear(4, 2), Labels()), x)
    with pytest.raises(ValueError, match="means no parameter of the model"):
        ntk(nn.Linear(4, 2), x, params="none")
    with pytest.raises(ValueError, match=r"does not take the inputs, float32 of shape \[3, 4\]"):
        ntk(nn.Linear(5, 2), x)
    with pytest.raises(ValueError, match=r"float64.*weights are float32: convert"):
        ntk(nn.Linear(4, 2), x.double())
    with pytest.raises((ValueError, TypeError), match=r"of one kind, not of shape \[3, 4\] and \[3, 5\]|typechecking"):
        ntk(nn.Linear(4, 2), x, torch.randn(3, 5))
    with pytest.raises((ValueError, TypeError), match=r"these are of shape \[\]|typechecking|Type-check"):
        ntk(nn.Linear(4, 2), torch.tensor(1.0))
    pair: Any = (x, x)
    with pytest.raises(TypeError, match=r"not a tuple|typechecking|Type-check"):
        ntk(nn.Linear(4, 2), pair)


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


class Labels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


def test_too_little_memory_says_how_much_is_needed_and_for_what():
    model = nn.Sequential(nn.LSTM(4, 200, batch_first=True))
    wrapped = nn.Sequential(Last(model))
    with pytest.raises(
        ValueError, match=r"MiB a sample.*numbers of it the Jacobian of .*weight_ih_l0.*may use 1\.0 MiB.*memory="
    ):
        ntk(wrapped, torch.randn(2, 3, 4), memory=2**20)
    with pytest.raises(ValueError, match=r"about [\d,]+ bytes a sample, and may use \d+ bytes"):
        ntk(mlp((4,), 2), torch.randn(2, 4), memory=100)


class Last(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)[0][:, -1]


class Largest(TorchDispatchMode):
    """Notes the most numbers that any result holds."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, Tensor):
                self.most = max(self.most, part.untyped_storage().nbytes() // part.element_size())
        return result


@pytest.mark.parametrize("trace", [True, False])
def test_a_wide_network_never_makes_its_jacobian_nor_the_gradient_of_one_sample(trace: bool):
    model, x = mlp((16,), 5, widths=(512, 512)), torch.randn(12, 16)
    gradient = 512 * 512
    with Largest() as mode:
        ntk(model, x, trace_outputs=trace)
    # The check takes one plain gradient; all else is samples × outputs × width at the most.
    assert mode.most <= max(gradient, 12 * 5 * 512)
    with Largest() as mode:
        follow(space_of(model), x)
    assert mode.most == gradient


@pytest.mark.parametrize("trace", [True, False])
def test_a_convolution_keeps_to_its_memory(trace: bool):
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(2304, 2)
    )
    x, memory = torch.randn(6, 3, 8, 8), 24 * 2**20
    with Largest() as mode:
        result = ntk(model, x, trace_outputs=trace, memory=memory)
    assert mode.most <= memory // 4
    torch.testing.assert_close(result, ntk(model, x, trace_outputs=trace), rtol=1e-3, atol=1e-3)
