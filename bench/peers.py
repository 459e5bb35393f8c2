"""The other tools behind one interface: products with the Hessian, and leading eigenpairs."""

import copy
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.workloads import LOSS, Batches

FOLDER = Path(sys.prefix, "bench-peers")
PACKAGES = {
    "PyHessian": "pyhessian",
    "curvlinops": "curvlinops-for-pytorch",
    "hessian-eigenthings": "hessian-eigenthings",
    "loss-landscapes": "loss-landscapes",
}
Product = Callable[[Tensor], Tensor]  # columns [dim, k] -> columns [dim, k]
Pairs = tuple[np.ndarray, Tensor]  # eigenvalues [k], eigenvectors [dim, k]


def findable() -> None:
    """Let the packages be imported that ``make bench`` has put aside; the project's own go first."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))


def named(peer: str) -> str:
    """The peer with its version, as rows name it."""
    try:
        return f"{peer} {version(PACKAGES[peer])}"
    except ModuleNotFoundError:
        return f"{peer} (not installed)"


def _own(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval()


def pyhessian(model: nn.Module, batches: Batches) -> Any:
    """PyHessian's object over batches."""
    from pyhessian import hessian

    return hessian(_own(model), LOSS, dataloader=batches, cuda=False)


def curvlinops(model: nn.Module, batches: Batches) -> Any:
    """The operator of curvlinops over batches, with its checks, as it is by default."""
    from curvlinops import HessianLinearOperator

    model = _own(model)
    return HessianLinearOperator(model, LOSS, list(model.parameters()), batches)


def eigenthings(model: nn.Module, batches: Batches) -> Any:
    """hessian-eigenthings' operator over batches."""
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings.loss_fns import supervised_loss

    return HessianOperator(_own(model), batches, supervised_loss(LOSS))


def pyhessian_product(model: nn.Module, batches: Batches) -> Product:
    """One column after the other: it has no block product."""
    tool = pyhessian(model, batches)

    def one(column: Tensor) -> Tensor:
        parts = column.split([p.numel() for p in tool.params])
        views = [v.view_as(p) for v, p in zip(parts, tool.params, strict=True)]
        return torch.cat([part.reshape(-1) for part in tool.dataloader_hv_product(views)[1]])

    return lambda columns: torch.stack([one(column) for column in columns.unbind(1)], 1)


def curvlinops_product(model: nn.Module, batches: Batches) -> Product:
    """All columns at once."""
    tool = curvlinops(model, batches)
    return lambda columns: tool @ columns


def eigenthings_product(model: nn.Module, batches: Batches) -> Product:
    """One column after the other: it has no block product."""
    tool = eigenthings(model, batches)
    return lambda columns: torch.stack([tool.matvec(c.contiguous()) for c in columns.unbind(1)], 1)


PRODUCTS: Mapping[str, Callable[[nn.Module, Batches], Product]] = {
    "PyHessian": pyhessian_product,
    "curvlinops": curvlinops_product,
    "hessian-eigenthings": eigenthings_product,
}


def pyhessian_pairs(model: nn.Module, batches: Batches, k: int, **settings: Any) -> Pairs:
    """By power iteration with deflation; largest in magnitude."""
    torch.manual_seed(0)
    values, vectors = pyhessian(model, batches).eigenvalues(top_n=k, **settings)
    return np.array(values), torch.stack([torch.cat([part.reshape(-1) for part in v]).detach() for v in vectors], 1)


def eigsh_pairs(model: nn.Module, batches: Batches, k: int, tolerance: float) -> Pairs:
    """SciPy's ARPACK on curvlinops' operator."""
    from scipy.sparse.linalg import eigsh

    op = curvlinops(model, batches).to_scipy()
    start = np.random.default_rng(0).standard_normal(op.shape[0]).astype(np.float32)
    values, vectors = eigsh(op, k=k, which="LA", tol=tolerance, v0=start)
    order = np.argsort(values)[::-1].copy()
    return values[order], torch.from_numpy(vectors[:, order])


def eigenthings_pairs(model: nn.Module, batches: Batches, k: int, **settings: Any) -> Pairs:
    """By Lanczos of a fixed number of steps."""
    from hessian_eigenthings import lanczos

    return _of(lanczos(eigenthings(model, batches), k=k, which="LA", seed=0, **settings))


def eigenthings_doubled(model: nn.Module, batches: Batches, k: int, tolerance: float) -> Pairs:
    """By Lanczos of twice the steps until the tool says that all have converged, from its default number on."""
    from hessian_eigenthings import lanczos

    op, steps = eigenthings(model, batches), 2 * k
    while True:
        found = lanczos(op, k=k, which="LA", seed=0, max_iter=steps, tol=tolerance)
        if bool(found.converged.all()) or steps >= 160:
            return _of(found)
        steps *= 2


def _of(found: Any) -> Pairs:
    return found.eigenvalues.numpy(), found.eigenvectors.T
