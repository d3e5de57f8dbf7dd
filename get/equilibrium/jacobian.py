"""The Jacobian J = df/dz, never formed: its Frobenius norm, as a penalty, and spectral radius."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from get.equilibrium.vectors import wide


def jacobian_penalty(
    f: Callable[..., Tensor],
    z: Float[Tensor, "batch ..."],
    *,
    inputs: tuple[Tensor, ...] = (),
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """Estimate |J|_F^2 / d of every sample (Hutchinson; Eq. 9, arXiv:2106.14342).

    The estimate is unbiased; d is the size of one sample's state. z is treated as a constant, so
    the penalty is not differentiated through the solve. f is differentiated twice, so scaled
    dot-product attention needs `sdpa_kernel(SDPBackend.MATH)` around this call and its backward;
    under `torch.no_grad` once.

    Args:
        f: The map, called as `f(z, *inputs)`.
        z: Where the Jacobian is taken, usually the solution.
        inputs: Further arguments of f; the penalty's gradient reaches them.
        draws: Number of random vectors averaged over; 1 is enough in training.
        generator: Source of the vectors.
    """
    if draws < 1:
        raise ValueError(f"expected at least 1 draw, got {draws}")
    product = _products(f, z, inputs)
    rows = (product(_normal_like(z, generator)) for _ in range(draws))
    return torch.stack([row.square().mean(1) for row in rows]).mean(0)


def spectral_radius(
    f: Callable[..., Tensor],
    z: Float[Tensor, "batch ..."],
    *,
    inputs: tuple[Tensor, ...] = (),
    steps: int = 30,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """Return the largest |eigenvalue| of J for every sample, by Arnoldi iteration.

    Correct for complex pairs, unlike the power method's Rayleigh quotient. Exact if `steps` is the
    dimension of a sample's state; with fewer steps an estimate that is mostly too low.

    Args:
        f: The map, called as `f(z, *inputs)`.
        z: Where the Jacobian is taken, usually the solution.
        inputs: Further arguments of f.
        steps: Number of vector-Jacobian products; the Krylov basis keeps as many states.
        generator: Source of the first vector.
    """
    with torch.no_grad():
        product = _products(f, z, inputs)
        steps = min(steps, z[0].numel())
        v = _normal_like(z, generator)
        basis = [v / v.norm(dim=1, keepdim=True)]
        hessenberg = v.new_zeros(len(z), steps + 1, steps)
        eps = 1e3 * torch.finfo(z.dtype).eps  # rounding errors of a product
        for k in range(steps):
            # Gram-Schmidt: make it orthogonal to the basis, twice because of rounding errors.
            w, known = product(basis[k]), torch.stack(basis, dim=1)
            size = w.norm(dim=1)
            for _ in range(2):
                overlap = (known @ w[:, :, None])[:, :, 0]
                w = w - (overlap[:, None] @ known)[:, 0]
                hessenberg[:, : k + 1, k] += overlap
            # A remainder the size of rounding errors is 0: the basis spans an invariant subspace.
            length = w.norm(dim=1)
            length = torch.where(length > eps * size, length, 0)
            hessenberg[:, k + 1, k] = length
            basis.append(torch.where(length[:, None] > 0, w / length[:, None], 0))
        return torch.linalg.eigvals(hessenberg[:, :steps]).abs().amax(1)


def _products(
    f: Callable[..., Tensor], z: Tensor, inputs: tuple[Tensor, ...]
) -> Callable[[Tensor], Tensor]:
    """Return a function from flat v to flat v J, in float32 at least.

    The products are differentiable where gradients are enabled.
    """
    with torch.enable_grad():
        start = z.detach().requires_grad_()
        image = f(start, *inputs)

    def product(v: Tensor) -> Tensor:
        if not image.requires_grad:  # f does not depend on z
            return torch.zeros_like(v)
        (row,) = torch.autograd.grad(
            image,
            start,
            v.view_as(image).to(image.dtype),
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
            allow_unused=True,
        )
        return row.flatten(1).to(v.dtype)

    return product


def _normal_like(z: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a unit normal vector a sample, flat; the values of half types too are exact in z's."""
    device = generator.device if generator else z.device
    v = torch.randn(z.shape, generator=generator, device=device, dtype=z.dtype)
    return v.to(z.device, wide(z.dtype)).flatten(1)
