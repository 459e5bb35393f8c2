"""Constraints on the members of a population: each works on its own member, as it does on a network alone."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from landscope.train import Training, constrain


def constrain_rows(
    members: Sequence[Training], parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], prefix: str
) -> None:
    """Apply the members' constraints to their rows.

    A member's own network serves for it: its parameters are made views of the row, which a constraint that works in
    place changes then and there; what it replaces instead is copied, and so are the buffers.

    Args:
        members: The member of each row.
        parameters: By name, ``[rows, ...]``, views of the rows.
        buffers: By name, ``[rows, ...]``.
        prefix: What stands before the names of the network's own buffers.
    """
    for row, member in enumerate(members):
        if member.constraint is None:
            continue
        views = {name: stacked[row] for name, stacked in parameters.items()}
        held = {name: buffers[f"{prefix}{name}"][row] for name, _ in member.model.named_buffers()}
        for name, p in member.model.named_parameters():
            p.data = views[name]
        for name, buffer in member.model.named_buffers():
            buffer.copy_(held[name])
        constrain(member)
        for name, p in member.model.named_parameters():
            if p.data_ptr() != views[name].data_ptr():
                views[name].copy_(p.data)
        for name, buffer in member.model.named_buffers():
            held[name].copy_(buffer)
