"""The Hessian's spectrum."""

from torch import Tensor

from landscope.curvature import hessian
from landscope.linalg import lanczos
from landscope.types import Snapshot


def top_eigenvalues(
    snapshot: Snapshot, *, k: int = 1, rtol: float = 1e-3, max_products: int = 300
) -> dict[str, float | Tensor]:
    """The k largest eigenvalues of the training loss's Hessian, with bounds on their error.

    The Hessian is that of the mean loss over the *whole* training set, in eval mode, with respect to all trainable
    parameters. Each eigenvalue comes with the residual ‖Hv − λv‖: an exact eigenvalue lies within it.

    Args:
        snapshot: The network and its data.
        k: How many eigenvalues.
        rtol: Residual over the eigenvalue's magnitude at which Lanczos stops.
        max_products: Products of the Hessian with a vector at the most.

    Returns:
        ``top_eigenvalue`` and ``top_eigenvalue_residual`` (of the largest), ``top_eigenvalue_converged`` (1 or 0),
        ``hessian_products``, and for k > 1 ``eigenvalues`` and ``eigenvalue_residuals``, descending, shape ``[k]``.

    Raises:
        FloatingPointError: where the loss or its derivatives are not finite.

    Cost: about 20 to 100 products, each one forward pass and three gradients over the training set.
    """
    operator = hessian(snapshot.model, snapshot.loss, snapshot.train)
    pairs = lanczos(operator, k, rtol=rtol, max_products=max_products, seed=snapshot.seed)
    values: dict[str, float | Tensor] = {
        "top_eigenvalue": pairs.eigenvalues[0].item(),
        "top_eigenvalue_residual": pairs.residuals[0].item(),
        "top_eigenvalue_converged": float(pairs.converged[0]),
        "hessian_products": float(pairs.products),
    }
    if k > 1:
        values |= {"eigenvalues": pairs.eigenvalues, "eigenvalue_residuals": pairs.residuals}
    return values
