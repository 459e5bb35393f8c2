"""What all optimizers promise: exact resumption, lr = 0, counted gradients, groups, schedulers, and clear refusals."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landscope.optimizers import ASAM, GSAM, NAMES, SAM, EntropySGD, PathSGD, ProxProp, optimizer
from landscope.spec import call


def network(batchnorm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(3)] if batchnorm else []
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    return net.double()


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(2, (6,), generator=generator)


def closure_of(net: nn.Module, opt: torch.optim.Optimizer, number: int) -> Callable[[], Tensor]:
    inputs, targets = batch(number)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        return loss

    return closure


MADE: dict[str, Callable[[nn.Module, float], Any]] = {
    "SAM": lambda net, lr: SAM(net.parameters(), lr=lr, momentum=0.9, rho=0.1),
    "SAM on Adam": lambda net, lr: SAM(net.parameters(), base="adam", lr=lr),
    "SAM on RMSprop": lambda net, lr: SAM(net.parameters(), base=torch.optim.RMSprop, lr=lr, momentum=0.5),
    "ASAM": lambda net, lr: ASAM(net.parameters(), lr=lr, momentum=0.9),
    "GSAM": lambda net, lr: GSAM(net.parameters(), base="adamw", lr=lr, rho=0.2, rho_min=0.1, clip=0.5),
    "EntropySGD": lambda net, lr: EntropySGD(
        net.parameters(), lr=lr, inner_steps=3, noise=1e-2, momentum=0.9, weight_decay=1e-3, seed=3
    ),
    "PathSGD": lambda net, lr: PathSGD(net, lr=lr / 10, momentum=0.9, weight_decay=1e-3, every=3, clip=1.0),
    "PathSGD calibrated": lambda net, lr: PathSGD(net, lr=2 * lr, calibrate=True),
    "ProxProp": lambda net, lr: ProxProp(net, lr=lr / 10),
    "ProxProp exact": lambda net, lr: ProxProp(net, base="nesterov", lr=lr, iterations=None, tau=0.5),
}
GRADIENTS = {name: 2 if "SAM" in name else 3 if name == "EntropySGD" else 1 for name in MADE}


@pytest.mark.parametrize("name", MADE)
def test_a_run_continues_bit_for_bit_from_its_state(name):
    net = network(batchnorm=True)
    opt = MADE[name](net, 0.05)
    for number in range(2):
        opt.step(closure_of(net, opt, number))
    twin = network(batchnorm=True)
    twin.load_state_dict(net.state_dict())
    other = MADE[name](twin, 0.5)  # its own settings are replaced by the state's
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for number in range(2, 6):  # past PathSGD's next κ
        opt.step(closure_of(net, opt, number))
        other.step(closure_of(twin, other, number))
    assert all(torch.equal(t, twin.state_dict()[n]) for n, t in net.state_dict().items())
    assert opt.gradients == other.gradients


@pytest.mark.parametrize(("way", "started"), [("copied", False), ("pickled", True)])
@pytest.mark.parametrize("name", MADE)
def test_a_copy_with_its_network_goes_on_like_the_original(name, started, way):
    net = network(batchnorm=True)
    opt = MADE[name](net, 0.05)
    if started:
        opt.step(closure_of(net, opt, 0))
    twin, other = copy.deepcopy((net, opt)) if way == "copied" else pickle.loads(pickle.dumps((net, opt)))  # noqa: S301
    for number in range(1, 3):
        opt.step(closure_of(net, opt, number))
    middle = {n: t.clone() for n, t in net.state_dict().items()}
    for number in range(1, 3):
        other.step(closure_of(twin, other, number))
    assert all(torch.equal(t, middle[n]) for n, t in twin.state_dict().items())
    assert all(torch.equal(t, middle[n]) for n, t in net.state_dict().items())  # which the copy leaves alone
    assert opt.gradients == other.gradients


@pytest.mark.parametrize("name", MADE)
def test_nothing_moves_at_learning_rate_zero(name):
    net = network()
    opt = MADE[name](net, 0.0)
    before = [w.detach().clone() for w in net.parameters()]
    for number in range(2):
        opt.step(closure_of(net, opt, number))
    assert all(torch.equal(w, old) for w, old in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("name", MADE)
def test_the_closure_is_called_as_often_as_documented_and_counted(name):
    net = network()
    opt = MADE[name](net, 0.05)
    calls = 0

    def counted(closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call_it() -> Tensor:
            nonlocal calls
            calls += 1
            assert torch.is_grad_enabled()
            return closure()

        return call_it

    for number in range(3):
        start = closure_of(net, opt, number)().item()
        assert opt.step(counted(closure_of(net, opt, number))).item() == start
    assert calls == opt.gradients == 3 * GRADIENTS[name]


@pytest.mark.parametrize("name", MADE)
def test_training_lowers_the_loss(name):
    net = network()
    opt = MADE[name](net, 0.05)
    first = opt.step(closure_of(net, opt, 0)).item()
    for _ in range(25):
        opt.step(closure_of(net, opt, 0))
    assert closure_of(net, opt, 0)().item() < 0.8 * first


@pytest.mark.parametrize("name", MADE)
def test_a_scheduler_and_a_group_set_the_learning_rate(name):
    net = network()
    opt = MADE[name](net, 0.05)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.0)
    before = [w.detach().clone() for w in net.parameters()]
    opt.step(closure_of(net, opt, 0))
    schedule.step()
    middle = [w.detach().clone() for w in net.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(before, middle, strict=True))
    opt.step(closure_of(net, opt, 1))
    assert all(torch.equal(w, old) for w, old in zip(net.parameters(), middle, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda net, groups: SAM(groups, lr=0.05),
        lambda net, groups: ASAM(groups, lr=0.05),
        lambda net, groups: GSAM(groups, lr=0.05, base="adam"),
        lambda net, groups: EntropySGD(groups, lr=0.05, inner_steps=2),
        lambda net, groups: PathSGD(net, params=groups, lr=0.005),
        lambda net, groups: ProxProp(net, params=groups, lr=0.005),
    ],
)
def test_groups_have_settings_of_their_own(make):
    net = network()
    layers = list(net.children())
    opt = make(net, [{"params": layers[0].parameters(), "lr": 0.0}, {"params": list(layers[3].parameters())}])
    before = [w.detach().clone() for w in net.parameters()]
    opt.step(closure_of(net, opt, 0))
    assert [torch.equal(w, old) for w, old in zip(net.parameters(), before, strict=True)] == [True] * 2 + [
        False
    ] * 2 + [True] * 2
    opt.add_param_group({"params": layers[5].parameters(), "lr": 0.01})
    opt.step(closure_of(net, opt, 1))
    assert not any(torch.equal(w, old) for w, old in zip(layers[5].parameters(), before[4:], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_torchs_own_are_there_by_name(name):
    net = network()
    opt: Any = optimizer(name, net.parameters(), lr=0.01)
    first = closure_of(net, opt, 0)().item()
    for _ in range(2 if name == "lbfgs" else 30):  # L-BFGS makes up to 20 gradients a step
        opt.step(closure_of(net, opt, 0))
    assert closure_of(net, opt, 0)().item() < first


def test_names_say_what_they_are():
    w = [torch.zeros(1, requires_grad=True)]
    assert len(NAMES) == 12
    assert optimizer("Momentum", w).defaults["momentum"] == 0.9
    assert optimizer("momentum", w, momentum=0.5).defaults["momentum"] == 0.5
    assert optimizer("nesterov", w).defaults["nesterov"]
    assert optimizer("amsgrad", w).defaults["amsgrad"]
    assert not optimizer("adam", w).defaults["amsgrad"]
    with pytest.raises(LookupError, match=r"'rmsporp' \(did you mean 'rmsprop'\?\); by name there are sgd, momentum"):
        optimizer("rmsporp", w)


ALL = [
    *(lambda params: optimizer("sgd", params), lambda params: SAM(params), lambda params: ASAM(params)),
    *(lambda params: GSAM(params), lambda params: EntropySGD(params, lr=0.1)),
    *(lambda params: PathSGD(network(), lr=0.1, params=params), lambda params: ProxProp(network(), params=params)),
]


@pytest.mark.parametrize("make", ALL)
def test_a_generator_that_was_walked_before_is_refused(make):
    walked = network().parameters()
    list(walked)
    with pytest.raises(ValueError, match="a generator can be walked once"):
        make(walked)
    with pytest.raises(ValueError, match=r"group 0.*a generator can be walked once"):
        make([{"params": walked}])


@pytest.mark.parametrize("make", ALL)
def test_no_parameters_are_refused(make):
    with pytest.raises(ValueError, match="no parameters: there is nothing to optimize"):
        make([])
    with pytest.raises(ValueError, match="none of the parameter groups holds a parameter"):
        make([{"params": []}])
    with pytest.raises(ValueError, match='group 0 has no "params"'):
        make([{"lr": 1.0}])
    with pytest.raises(TypeError, match="not the module itself"):
        make(network())
    with pytest.raises(TypeError, match="not one tensor"):
        make(torch.zeros(2, requires_grad=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: SAM(w, rho=-0.1), "SAM needs rho >= 0, not -0.1"),
        (lambda w: SAM(w, clip=-1.0), "SAM needs clip >= 0"),
        (lambda w: SAM(w, clip=0.0), "SAM clips gradients to a length above 0"),
        (lambda w: PathSGD(network(), lr=1.0, clip=0.0), "PathSGD clips gradients to a length above 0"),
        (lambda w: SAM(w, base=SAM), "SAM computes gradients of its own and cannot be the base of SAM"),
        (lambda w: GSAM(w, base=EntropySGD), "EntropySGD computes gradients of its own"),
        (lambda w: ProxProp(network(), params=w), "do not belong to the model"),
        (lambda w: SAM(w, base="lbfgs"), "L-BFGS calls its closure itself"),
        (lambda w: SAM(w).step(), "needs two gradients a step"),
        (lambda w: GSAM(w, alpha=-3.0), "GSAM needs alpha >= 0"),
        (lambda w: ASAM(w, eta=-1.0), "ASAM needs eta >= 0"),
        (lambda w: ASAM(w, scope="biases"), "scope is one of matrices, weights, all, not 'biases'"),
        (lambda w: ASAM(w, scope="weights"), "give model.named_parameters"),
        (lambda w: GSAM(w, rho_min=0.01, lr=0.1, lr_max=0.05, lr_min=0.1), "from lr_max down to lr_min"),
        (lambda w: EntropySGD(w, lr=-1.0), "EntropySGD needs lr >= 0"),
        (lambda w: EntropySGD(w, lr=1.0, inner_steps=-1), "inner_steps >= 0"),
        (lambda w: EntropySGD(w, lr=1.0, averaging="both"), "not 'both'"),
        (lambda w: EntropySGD(w, lr=1.0, averaging=1.5), r"between 0 and 1, not at 1\.5"),
        (lambda w: EntropySGD(w, lr=1.0).step(), "several gradients a step"),
        (lambda w: PathSGD(network(), lr=-1.0), "PathSGD needs lr >= 0"),
        (lambda w: PathSGD(network(), lr=1.0, every=0), "at least 1, not 0"),
        (lambda w: PathSGD(network(), lr=1.0, params=w), "do not belong to the model"),
        (lambda w: ProxProp(network(), tau=0.0), "tau above 0, not 0"),
        (lambda w: ProxProp(network(), iterations=0), "at least 1 conjugate gradient iteration"),
        (lambda w: ProxProp(network(), layers=("1",)), "for '1' it is a ReLU"),
        (lambda w: ProxProp(network(), layers=("head",)), "for 'head' there is none of this name"),
        (lambda w: ProxProp(nn.Linear(2, 2)), "all linear and convolutional layers but the last: none"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make([torch.zeros(2, requires_grad=True)])


RATE: dict[str, Any] = {"lr": 0.1}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda **settings: SAM([numbers()], **settings), ("rho", "clip", "lr")),
        (lambda **settings: ASAM([numbers()], **settings), ("rho", "eta", "lr")),
        (lambda **settings: GSAM([numbers()], **settings), ("rho", "rho_min", "alpha", "lr_max", "lr_min", "eta")),
        (
            lambda **settings: EntropySGD([numbers()], **RATE | settings),
            ("lr", "gamma", "scoping", "noise", "inner_lr", "momentum", "weight_decay"),
        ),
        (
            lambda **settings: PathSGD(network(), **RATE | settings),
            ("lr", "momentum", "weight_decay", "clip"),
        ),
        (lambda **settings: ProxProp(network(), **settings), ("lr", "tau")),
    ],
)
def test_settings_are_finite_numbers(make, names, value):
    for name in names:
        with pytest.raises(ValueError, match=f"(needs {name} >= 0, not|Invalid learning rate:) {value}"):
            make(**{name: value})


def test_a_setting_of_a_group_that_is_no_number_is_refused():
    opt = SAM([numbers()])
    with pytest.raises(TypeError, match=r"SAM needs a number for rho, not '0\.1'"):
        opt.add_param_group({"params": [numbers()], "rho": "0.1"})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize("make", [lambda net: PathSGD(net, lr=0.1), lambda net: ProxProp(net)])
def test_a_group_of_parameters_from_elsewhere_is_refused(make):
    net = network()
    opt = make(net)
    with pytest.raises(ValueError, match=r"do not belong to the model \(\[2\] for one\)"):
        opt.add_param_group({"params": [numbers()]})
    assert len(opt.param_groups) == 1


def test_a_network_that_has_grown_may_add_its_layers():
    net, added = network(), nn.Linear(2, 2).double()
    opt = PathSGD(net, lr=0.01)
    net.append(added)
    opt.add_param_group({"params": added.parameters()})
    before = added.weight.detach().clone()
    opt.step(closure_of(net, opt, 0))
    assert not torch.equal(added.weight, before)


@pytest.mark.parametrize("name", MADE)
def test_another_optimizers_state_is_refused(name):
    other: torch.optim.Optimizer = torch.optim.Adagrad(network().parameters())
    opt = MADE[name](network(), 0.1)
    with pytest.raises(ValueError, match=f"this is no state of {type(opt).__name__}.*groups lack .* and have .*eps"):
        opt.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="no state of SAM on SGD: its groups lack dampening, momentum"):
        SAM(network().parameters()).load_state_dict(SAM(network().parameters(), base="adam").state_dict())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (None, TypeError, "needs one of the names sgd, .* not None"),
        (3, TypeError, "not 3"),
        ("sam", LookupError, r"'sam' is a class of its own .* landscope\.optimizers\.SAM\(params, …\)"),
        ("Path-SGD", LookupError, r"landscope\.optimizers\.PathSGD\(model, …\)"),
        ("prox_prop", LookupError, r"landscope\.optimizers\.ProxProp\(model, …\)"),
    ],
)
def test_what_is_no_name_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(optimizer)(name, [numbers()])  # without the check of types that tests add


def test_a_base_is_a_name_or_a_class():
    for base in (torch.optim.SGD([numbers()], lr=0.1), None, nn.Linear):
        with pytest.raises(TypeError, match=r"SAM makes its base itself: give a name .* or a class of PyTorch's"):
            object.__new__(SAM)._check_base(base)  # without the check of types that tests add


def numbers() -> Tensor:
    return torch.zeros(2, requires_grad=True)


@pytest.mark.parametrize(
    ("make", "setting", "message"),
    [
        (lambda groups: SAM(groups), {"rho": -0.1}, "SAM needs rho >= 0, not -0.1"),
        (
            lambda groups: SAM(groups),
            {"clip": 1.0},
            "SAM has one clip for all its parameters, but the groups have None",
        ),
        (lambda groups: ASAM(groups), {"eta": -1.0}, "ASAM needs eta >= 0"),
        (lambda groups: ASAM(groups), {"scope": "biases"}, "not 'biases'"),
        (lambda groups: GSAM(groups), {"alpha": -3.0}, "GSAM needs alpha >= 0, not -3"),
        (lambda groups: GSAM(groups), {"rho_min": -3.0}, "GSAM needs rho_min >= 0"),
        (lambda groups: EntropySGD(groups, lr=1.0), {"noise": -1.0}, "EntropySGD needs noise >= 0"),
        (lambda groups: EntropySGD(groups, lr=1.0), {"averaging": "both"}, "not 'both'"),
        (lambda groups: EntropySGD(groups, lr=1.0), {"inner_steps": 3}, "has one inner_steps .* have 20 and 3"),
    ],
)
def test_settings_of_groups_are_refused_as_the_optimizers_own(make, setting, message):
    with pytest.raises(ValueError, match=message):
        make([{"params": [numbers()]}, {"params": [numbers()], **setting}])
    opt = make([numbers()])
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": [numbers()], **setting})
    assert len(opt.param_groups) == 1  # as it was


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda net, group: EntropySGD([{"params": net.parameters(), **group}], lr=1.0), "inner_steps"),
        (lambda net, group: ProxProp(net, params=[{"params": net.parameters(), **group}]), "iterations"),
        (lambda net, group: PathSGD(net, lr=1.0, params=[{"params": net.parameters(), **group}]), "every"),
    ],
)
@pytest.mark.parametrize("value", [1.5, True, -1])
def test_counts_are_whole_numbers(make, setting, value):
    with pytest.raises(ValueError, match=str(value)):
        make(network(), {setting: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda net: SAM(net.parameters()),
        lambda net: ASAM(net.parameters()),
        lambda net: GSAM(net.parameters()),
        lambda net: EntropySGD(net.parameters(), lr=0.1),
        lambda net: PathSGD(net, lr=0.1, shape=()),
    ],
)
def test_sparse_gradients_are_refused(make):
    net = nn.Embedding(5, 2, sparse=True)
    before = net.weight.detach().clone()
    opt = make(net)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = net(torch.tensor([1, 3])).square().sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"needs dense gradients, and that of a parameter \[5, 2\] is sparse"):
        opt.step(closure)
    assert torch.equal(net.weight.detach(), before)


def test_they_stand_in_recipes():
    assert call(SAM, lr=0.1, momentum=0.9)["momentum"] == 0.9
    assert call(EntropySGD, lr=1)["inner_steps"] == 20
    bound = call(PathSGD, lr=0.1)
    net = network()
    assert isinstance(bound(net), PathSGD)
    with pytest.raises(TypeError, match="needs the setting 'lr'"):
        call(PathSGD)
