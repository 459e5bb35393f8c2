"""Residual networks for small images: 6n + 2 layers, and the wider ResNet-18; and networks with a layer put in."""

from collections import OrderedDict

from torch import nn

from landscope.layers import Residual, insert
from landscope.models.checks import check_choice, check_image, check_sizes, check_whole, initialise
from landscope.spec import Call

SHORTCUTS = ("subsample", "pool", "projection")
ORDERS = ("post", "pre")


def resnet(
    shape: tuple[int, ...],
    outputs: int,
    /,
    *,
    depth: int = 20,
    channels: int = 16,
    shortcut: str = "subsample",
    order: str = "post",
    initialisation: str = "he",
) -> nn.Sequential:
    """The residual network of 6n + 2 layers for CIFAR (He et al., "Deep residual learning", 2015, section 4.2).

    A 3×3 convolution, three stages of n blocks with k, 2k and 4k maps, the first block of the second and third with
    stride 2, the mean over each map, and a linear layer: the parts ``stem``, ``stage1`` to ``stage3`` and ``head``
    (with pre-activation, ``norm`` before it). A block is two 3×3 convolutions without bias, each with BatchNorm, and
    a shortcut:

    - ``order="post"``: relu(BN(conv(relu(BN(conv x)))) + shortcut(x)), as first published;
    - ``order="pre"``: conv(relu(BN(conv(relu(BN(x)))))) + shortcut(x), with BatchNorm and ReLU before the head
      (He et al., "Identity mappings in deep residual networks", 2016).

    Where a block changes the size, the shortcut is ``"subsample"`` (every second pixel, zeros for the new maps in
    equal parts on both sides; option A, no parameters), ``"pool"`` (the mean of 2×2 pixels instead), or
    ``"projection"`` (option B: a 1×1 convolution; with BatchNorm after it where the activation comes after, taken
    from the activated input where it comes before).

    Args:
        shape: (channels, height, width) of one image.
        outputs: Classes.
        depth: 6n + 2 layers: 20, 32, 44, 56, 110, 1202; 8 and 14 for small machines.
        channels: Maps k of the first stage, an even number unless the shortcuts are projections.
        shortcut: See above.
        order: See above.
        initialisation: ``"he"``, as published, or ``"pytorch"``.

    Raises:
        ValueError: for another depth, shortcut, order or initialisation, sizes below 1, or inputs that are not images.

    >>> sum(p.numel() for p in resnet((3, 32, 32), 10).parameters())
    269722
    """
    check_whole("depth", depth)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth is 6n + 2 with n >= 1 (8, 14, 20, 32, 44, 56, 110, 1202 …), not {depth}")
    blocks = (depth // 6,) * 3
    return _network("resnet", shape, outputs, blocks, channels, shortcut, order, initialisation)


def resnet18(
    shape: tuple[int, ...],
    outputs: int,
    /,
    *,
    channels: int = 64,
    shortcut: str = "projection",
    order: str = "post",
    initialisation: str = "he",
) -> nn.Sequential:
    """ResNet-18 with k to 8k maps for small images: as `resnet`, but four stages of two blocks.

    The stem is one 3×3 convolution of stride 1 without pooling, as is usual for 32-pixel images (11,173,962 parameters
    for ten classes, against 11.7 million for ImageNet). Double-descent studies vary ``channels`` from 1 to 64 with
    ``order="pre"`` (Nakkiran et al. 2019; their code has no BatchNorm before the head, this one has, as He et al.).

    Args:
        shape: (channels, height, width) of one image.
        outputs: Classes.
        channels: Maps k of the first stage.
        shortcut: As for `resnet`.
        order: As for `resnet`.
        initialisation: ``"he"`` or ``"pytorch"``.

    Raises:
        ValueError: as `resnet` does.
    """
    return _network("resnet18", shape, outputs, (2, 2, 2, 2), channels, shortcut, order, initialisation)


def with_layer(
    shape: tuple[int, ...],
    outputs: int,
    /,
    *,
    model: Call,
    place: str,
    layer: Call,
    inputs: int,
    into: int | None = None,
    where: str = "after",
) -> nn.Module:
    """A Recipe's model: another one with a layer put in by `landscope.layers.insert`.

    ``call(with_layer, model=call(resnet), place="stage3", layer=call(DropoutGeneralizationLayer, p=0.75,
    convolution=True), inputs=64)`` is the ResNet-20 GLD 0.75 of Taborsky and Hansen's Table 1.

    Args:
        shape: The shape of one input, without the batch dimension.
        outputs: Classes, or the dimension of a regression target.
        model: The network: called with ``(shape, outputs)``.
        place: The submodule's name.
        layer: The layer: called with ``(inputs, into)``.
        inputs: Features or maps that come into the layer.
        into: Features or maps that leave it; None means as many.
        where: ``"after"`` the submodule, ``"before"`` or ``"instead"`` of it.

    Raises:
        LookupError: where the network has no such submodule.
        ValueError: as `landscope.layers.insert` does.
    """
    made = model(shape, outputs)
    insert(made, place, layer(inputs, into), where=where)
    return made


def _network(
    name: str,
    shape: tuple[int, ...],
    outputs: int,
    blocks: tuple[int, ...],
    channels: int,
    shortcut: str,
    order: str,
    initialisation: str,
) -> nn.Sequential:
    check_sizes(shape, outputs, channels)
    check_image(name, shape, 1)
    check_choice("shortcut", shortcut, SHORTCUTS)
    check_choice("order", order, ORDERS)
    if channels % 2 and shortcut != "projection":
        raise ValueError(
            f"channels={channels}: the shortcut {shortcut!r} pads new maps with zeros, half of them on each side, and "
            "needs an even number; or take shortcut='projection'"
        )
    stem = [nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)]
    ready = [nn.BatchNorm2d(channels), nn.ReLU()]
    parts: dict[str, nn.Module] = {"stem": nn.Sequential(*stem, *(ready if order == "post" else []))}
    into = channels
    block = _post_activated if order == "post" else _pre_activated
    for stage, number in enumerate(blocks):
        maps, layers = channels * 2**stage, []
        odd = any(-(-side // 2 ** max(stage - 1, 0)) % 2 for side in shape[1:])  # of what comes into the stage
        for i in range(number):
            layers += block(into, maps, 2 if stage and not i else 1, shortcut, odd)
            into = maps
        parts[f"stage{stage + 1}"] = nn.Sequential(*layers)
    if order == "pre":
        parts["norm"] = nn.Sequential(nn.BatchNorm2d(into), nn.ReLU())
    parts["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, outputs))
    model = nn.Sequential(OrderedDict(parts))
    initialise(model, initialisation)
    return model


def _post_activated(into: int, maps: int, stride: int, shortcut: str, odd: bool) -> list[nn.Module]:
    first = [nn.Conv2d(into, maps, 3, stride, padding=1, bias=False), nn.BatchNorm2d(maps), nn.ReLU()]
    second = [nn.Conv2d(maps, maps, 3, padding=1, bias=False), nn.BatchNorm2d(maps)]
    if into == maps and stride == 1:
        way: nn.Module = nn.Identity()
    elif shortcut == "projection":
        way = nn.Sequential(nn.Conv2d(into, maps, 1, stride, bias=False), nn.BatchNorm2d(maps))
    else:
        way = _padded(into, maps, stride, shortcut, odd)
    return [Residual(nn.Sequential(*first, *second), way), nn.ReLU()]


def _pre_activated(into: int, maps: int, stride: int, shortcut: str, odd: bool) -> list[nn.Module]:
    activated = [nn.BatchNorm2d(into), nn.ReLU()]
    first = [nn.Conv2d(into, maps, 3, stride, padding=1, bias=False), nn.BatchNorm2d(maps), nn.ReLU()]
    branch = [*first, nn.Conv2d(maps, maps, 3, padding=1, bias=False)]
    if into == maps and stride == 1:
        return [Residual(nn.Sequential(*activated, *branch))]
    if shortcut == "projection":  # both ways begin with the activation, so that it comes before them
        return [*activated, Residual(nn.Sequential(*branch), nn.Conv2d(into, maps, 1, stride, bias=False))]
    return [Residual(nn.Sequential(*activated, *branch), _padded(into, maps, stride, shortcut, odd))]


def _padded(into: int, maps: int, stride: int, shortcut: str, odd: bool) -> nn.Sequential:
    pooled = shortcut == "pool"
    before = (maps - into) // 2
    # ceil_mode: an odd size ends as the convolution of the other way leaves it.
    smaller = nn.AvgPool2d(stride if pooled else 1, stride, ceil_mode=odd and pooled)
    return nn.Sequential(smaller, nn.ConstantPad3d((0, 0, 0, 0, before, maps - into - before), 0.0))
