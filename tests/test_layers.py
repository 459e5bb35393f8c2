"""Generalization layers: what they compute, where they are put in, and how they are trained."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from cases import recipe
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from landscope.layers import (
    DropoutGeneralizationLayer,
    GeneralizationLayer,
    Residual,
    anneal_skips,
    annealed_skips,
    grouped,
    insert,
    parameter_groups,
    skip_weight,
    slow_layers,
)
from landscope.models import mlp, resnet, seeded, with_layer
from landscope.spec import call
from landscope.train import advance, begin, checkpoint, restore


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def net() -> nn.Sequential:
    """Two linear maps with a generalization layer between them."""
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), GeneralizationLayer(4), nn.ReLU(), nn.Linear(4, 3))


# --- what they compute ------------------------------------------------------------------------------------------------


def test_a_residual_is_the_sum_of_both_ways():
    x, a, b = drawn(3, 4), nn.Linear(4, 2).double(), nn.Linear(4, 2).double()
    torch.testing.assert_close(Residual(a, b)(x), a(x) + b(x))
    torch.testing.assert_close(Residual(nn.Tanh())(x), x.tanh() + x)


def test_a_dense_generalization_layer_is_its_block_plus_nu_times_the_skip():
    x = drawn(3, 4)
    layer = GeneralizationLayer(4, nu=0.3).double()
    first, _, second = layer.block
    torch.testing.assert_close(layer(x), second(functional.relu(first(x))) + 0.3 * x)
    assert [p.shape for p in layer.parameters()] == [(4, 4), (4,), (4, 4), (4,)]
    wider = GeneralizationLayer(4, 7, nu=0.3).double()
    assert isinstance(wider.skip, nn.Linear)
    torch.testing.assert_close(wider(x), wider.block(x) + 0.3 * x @ wider.skip.weight.T)
    assert GeneralizationLayer(4, 7, nodes=9, batchnorm=True).block[0].weight.shape == (9, 4)


def test_a_convolutional_generalization_layer_in_place_of_a_stage():
    layer = GeneralizationLayer(16, 32, convolution=True, stride=2).double()
    x = drawn(2, 16, 9, 8)
    first, _, second = layer.block
    assert isinstance(layer.skip, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    expected = functional.conv2d(functional.relu(first(x)), second.weight, second.bias, stride=2, padding=1)
    skip = torch.einsum("oi,nihw->nohw", layer.skip.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(layer(x), expected + skip)
    sizes = (16 * 16 * 9 + 16) + (16 * 32 * 9 + 32) + 16 * 32
    assert count(layer) == sizes
    same = GeneralizationLayer(3, convolution=True).double()
    torch.testing.assert_close(same(x[:, :3]), same.block(x[:, :3]) + x[:, :3])


def test_nu_is_saved_with_the_model_and_no_parameter():
    layer = GeneralizationLayer(4, nu=0.25)
    assert "nu" in layer.state_dict()
    assert "nu" not in dict(layer.named_parameters())
    other = GeneralizationLayer(4)
    other.load_state_dict(layer.state_dict())
    assert other.nu == 0.25
    assert "nu=0.25" in repr(layer)


def test_dropout_acts_on_the_added_nodes_alone():
    x = drawn(400, 6)
    layer = DropoutGeneralizationLayer(6, nodes=50, p=0.6).double()
    dropped: list[Tensor] = []
    (drop,) = [m for m in layer.modules() if isinstance(m, nn.Dropout)]
    drop.register_forward_hook(lambda module, inputs, output: dropped.append((output == 0) & (inputs[0] > 0)))
    alive: list[Tensor] = []
    drop.register_forward_pre_hook(lambda module, inputs: alive.append(inputs[0] > 0))
    with seeded(0):
        outputs = layer(x)
    share = dropped[0].sum() / alive[0].sum()
    assert abs(share - 0.6) < 5 * (0.6 * 0.4 / alive[0].sum()) ** 0.5
    assert not torch.equal(dropped[0][0], dropped[0][1])  # each sample has its own
    layer.eval()
    first, _, _, second, _ = layer.block
    expected = functional.relu(second(functional.relu(first(x))))
    torch.testing.assert_close(layer(x), expected)
    assert not torch.equal(outputs, expected)


def test_all_dropped_or_none():
    x = drawn(5, 6)
    none, everything = (DropoutGeneralizationLayer(6, p=p).double() for p in (0.0, 1.0))
    torch.testing.assert_close(none(x), none.eval()(x))
    last = everything.block[3]
    assert isinstance(last, nn.Linear)
    torch.testing.assert_close(everything(x), functional.relu(last.bias).expand(5, -1))


def test_added_nodes_have_the_sizes_that_explain_the_papers_table():
    layer = DropoutGeneralizationLayer(64, p=0.75, convolution=True)
    assert count(layer) == 73_984
    assert sum(isinstance(m, nn.Conv2d) for m in layer.modules()) == 2
    assert DropoutGeneralizationLayer(8, 4, convolution=True, stride=2)(torch.zeros(2, 8, 6, 6)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GeneralizationLayer(4, 6),
        lambda: GeneralizationLayer(4, batchnorm=True),
        lambda: DropoutGeneralizationLayer(4, p=0.0),
    ],
)
def test_many_layers_run_as_one_each_with_its_own_nu(make: Callable[[], nn.Module]):
    layers, x = [make().double().eval() for _ in range(3)], drawn(5, 4)
    for i, layer in enumerate(layers):
        if isinstance(layer, GeneralizationLayer):
            layer.nu.fill_(0.1 + i)
    state = stack_module_state(layers)
    together = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(*state)
    for outputs, layer in zip(together, layers, strict=True):
        torch.testing.assert_close(outputs, layer(x))


# --- insertion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["after", "before", "instead"])
def test_a_layer_comes_where_it_was_put(where: str):
    model = mlp((5,), 3, widths=(4, 4)).double().eval()
    x, layer, there = drawn(6, 5), GeneralizationLayer(4), model[3]
    parts = list(model)
    insert(model, "3", layer, where=where)
    expected = {"after": [there, layer], "before": [layer, there], "instead": [layer]}[where]
    torch.testing.assert_close(model(x), nn.Sequential(*parts[:3], *expected, *parts[4:])(x))
    assert layer.block[0].weight.dtype == torch.float64
    assert not layer.training
    assert any(layer is m for m in model.modules())


def test_a_layer_after_the_encoder_of_a_resnet():
    model = resnet((3, 32, 32), 10, depth=8)
    before = count(model)
    insert(model, "stage3", DropoutGeneralizationLayer(64, p=0.75, convolution=True))
    assert count(model) == before + 73_984
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert [name for name, _ in model.named_children()] == ["stem", "stage1", "stage2", "stage3", "head"]


def test_a_generalization_layer_instead_of_the_second_stage():
    made = with_layer(
        (3, 16, 16),
        10,
        model=call(resnet, depth=8, channels=4),
        place="stage2",
        layer=call(GeneralizationLayer, convolution=True, stride=2),
        inputs=4,
        into=8,
        where="instead",
    )
    assert made(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert isinstance(made.get_submodule("stage2"), GeneralizationLayer)


def test_a_place_is_found_anywhere_in_any_module():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(3, 4))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x))

    model = nn.Sequential(Inner())
    insert(model, "0.encoder", GeneralizationLayer(4))
    assert "0.encoder.1.block.0.weight" in dict(model.named_parameters())
    assert model(torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize("place", ["layers.0.linear1", "layers.0.dropout", "layers.1.norm2"])
def test_a_layer_in_a_transformer_counts_in_eval_mode_too(place: str):
    torch.manual_seed(0)
    part = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(part, 2, enable_nested_tensor=True)
    width = 8 if "norm" in place else 6
    insert(model, place, nn.Linear(width, width))
    x, padding = torch.randn(3, 5, 8), torch.arange(5) > torch.tensor([[4], [2], [3]])
    training = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        looked = model.eval()(x, src_key_padding_mask=padding)
    torch.testing.assert_close(looked[~padding], training.detach()[~padding])


def test_parts_of_an_attention_are_refused():
    with pytest.raises(ValueError, match=r"'self_attn\.out_proj' is a part of nn\.MultiheadAttention"):
        insert(nn.TransformerEncoderLayer(8, 2), "self_attn.out_proj", nn.Linear(8, 8))


def test_places_that_are_none_are_refused_and_the_network_stays_as_it_was():
    model = mlp((5,), 3, widths=(4,))
    before = list(model.state_dict())
    with pytest.raises(LookupError, match=r"no submodule 'stage3'; it has 0, 1, 2, 3"):
        insert(model, "stage3", nn.ReLU())
    with pytest.raises(LookupError, match=r"no submodule '1\.0'"):
        insert(model, "1.0", nn.ReLU())
    with pytest.raises(ValueError, match="name of a submodule"):
        insert(model, "", nn.ReLU())
    with pytest.raises(ValueError, match="one of after, before, instead, not 'around'"):
        insert(model, "1", nn.ReLU(), where="around")
    shared = nn.ReLU()
    with pytest.raises(ValueError, match="'1' is also '3'"):
        insert(nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared), "1", nn.ReLU())
    assert list(model.state_dict()) == before


# --- training ---------------------------------------------------------------------------------------------------------


def test_nu_falls_linearly_and_stays_at_its_floor():
    values = [skip_weight(t, steps=50) for t in range(60)]
    assert values[0] == 1
    assert values[20] == pytest.approx(0.55)
    assert values[40:] == pytest.approx([0.1] * 20)
    differences = [a - b for a, b in pairwise(values[:41])]
    assert differences == pytest.approx([0.9 / 40] * 40)
    assert skip_weight(500, steps=500, reached=1.0) == pytest.approx(0.1)  # Fig. 7: at a given epoch
    assert skip_weight(3, steps=4, start=0.2, floor=0.6, reached=1.0) == pytest.approx(0.5)


def test_annealing_sets_every_layer_at_once_or_step_by_step():
    at_once, by_step = nn.Sequential(net(), GeneralizationLayer(3)), nn.Sequential(net(), GeneralizationLayer(3))
    for t in range(12):
        anneal_skips(at_once, step=t, steps=10, floor=0.2)
        annealed_skips(by_step, steps=10, floor=0.2)
        for model in (at_once, by_step):
            nus = [m.nu.item() for m in model.modules() if isinstance(m, GeneralizationLayer)]
            assert nus == pytest.approx([skip_weight(t, steps=10, floor=0.2)] * 2, rel=1e-6)


def test_groups_hold_every_trainable_parameter_once():
    model = net()
    model.get_parameter("0.bias").requires_grad_(False)
    rest, slow = parameter_groups(model, lr=0.5, factor=0.1)
    own = list(model[2].parameters())
    assert {id(p) for p in slow["params"]} == {id(p) for p in own}
    assert {id(p) for p in rest["params"]} == {id(p) for p in model.parameters() if p.requires_grad} - {
        id(p) for p in own
    }
    assert (rest["lr"], slow["lr"]) == (0.5, 0.05)
    assert [group["generalization"] for group in parameter_groups(nn.Sequential(GeneralizationLayer(2)))] == [True]
    assert "lr" not in parameter_groups(model)[0]


OPTIMIZERS = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimizer_takes_the_groups_and_slows_the_layers_down(kind: Callable[..., torch.optim.Optimizer]):
    model = net()
    optimizer = kind(parameter_groups(model), lr=0.2)
    schedule = slow_layers(optimizer, after=3)
    rates = []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.zero_grad()
        model(torch.ones(2, 5)).sum().backward()
        optimizer.step()
        schedule.step()
    assert rates[:3] == [[0.2, 0.2]] * 3
    assert rates[3] == rates[4] == pytest.approx([0.2, 0.02])


def test_layers_may_be_slow_from_the_start_and_beside_another_schedule():
    first = torch.optim.SGD(parameter_groups(net()), lr=1.0)
    slow_layers(first, after=0, factor=0.5)
    assert [group["lr"] for group in first.param_groups] == [1.0, 0.5]
    optimizer = torch.optim.SGD(parameter_groups(net()), lr=1.0)
    steps = call(torch.optim.lr_scheduler.MultiStepLR, milestones=(2, 4), gamma=0.1)
    schedule = slow_layers(optimizer, after=3, factor=0.5, schedule=steps)
    rates = []
    for _ in range(6):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [[1, 1], [1, 1], [0.1, 0.1], [0.1, 0.05], [0.01, 0.005], [0.01, 0.005]]
    assert [rate for pair in rates for rate in pair] == pytest.approx([rate for pair in expected for rate in pair])


def test_a_learning_rate_of_zero_moves_only_the_rest():
    model = net()
    before = [p.clone() for p in model[2].parameters()]
    optimizer = torch.optim.SGD(parameter_groups(model, lr=0.1, factor=0.0), lr=0.1)
    model(torch.ones(2, 5)).sum().backward()
    first = model.get_parameter("4.weight").clone()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model[2].parameters(), strict=True))
    assert not torch.equal(model.get_parameter("4.weight"), first)


def test_a_recipe_trains_with_the_whole_regime_and_goes_on_bit_for_bit():
    layered = call(
        with_layer, model=call(mlp, widths=(6, 6)), place="2", layer=call(GeneralizationLayer), inputs=6, where="after"
    )
    chosen = recipe(
        model=layered,
        optimizer=call(grouped, optimizer=call(torch.optim.SGD, lr=0.1, momentum=0.9)),
        schedule=call(slow_layers, after=15, schedule=call(torch.optim.lr_scheduler.StepLR, step_size=12)),
        constraint=call(annealed_skips, steps=40),
    )
    training = begin(chosen, chosen.data(0, None))
    layer = training.model.get_submodule("2.1")
    assert isinstance(layer, GeneralizationLayer)
    seen, kept = [], None
    for state in advance(training):
        seen.append(layer.nu.item())
        if state.step == 20:
            kept = checkpoint(state)
            assert [g["lr"] for g in state.optimizer.param_groups] == pytest.approx([0.01, 0.001])
    assert seen == pytest.approx([skip_weight(t, steps=40) for t in range(41)], rel=1e-6)
    assert kept is not None
    again = begin(chosen, chosen.data(0, None))
    restore(again, *kept)
    for _ in advance(again):
        pass
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DropoutGeneralizationLayer(4, p=1.2), "between 0 and 1, not 1.2"),
        (lambda: DropoutGeneralizationLayer(4, p=-0.1), "between 0 and 1"),
        (lambda: DropoutGeneralizationLayer(4, p=float("nan")), "between 0 and 1"),
        (lambda: GeneralizationLayer(0), "at least 1 input"),
        (lambda: GeneralizationLayer(4, nodes=0), "at least 1 input"),
        (lambda: GeneralizationLayer(4, stride=2), "convolution=True"),
        (lambda: GeneralizationLayer(4, nu=-1.0), "from 0, not -1.0"),
        (lambda: skip_weight(1, steps=0), "at least 1 step"),
        (lambda: skip_weight(1, steps=9, reached=1.5), "up to 1"),
        (lambda: skip_weight(1, steps=9, floor=float("nan")), "from 0"),
        (lambda: anneal_skips(mlp((2,), 2), step=1, steps=2), "has no GeneralizationLayer"),
        (lambda: annealed_skips(mlp((2,), 2), steps=2), "has no GeneralizationLayer"),
        (lambda: parameter_groups(mlp((2,), 2)), "has no GeneralizationLayer"),
        (lambda: parameter_groups(net(), factor=0.1), "give lr too"),
        (lambda: slow_layers(torch.optim.SGD(net().parameters(), lr=0.1), after=3), "parameter_groups"),
        (lambda: slow_layers(torch.optim.SGD(parameter_groups(net()), lr=0.1), after=-1), "from 0"),
        (lambda: slow_layers(torch.optim.SGD(parameter_groups(net()), lr=0.1), after=3, factor=math.inf), "inf"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()
