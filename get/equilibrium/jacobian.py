"""The Jacobian J = df/dz, never formed: its Frobenius norm, as a penalty, and spectral radius."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


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
    dot-product attention needs `sdpa_kernel(SDPBackend.MATH)` around this call and its backward.

    Args:
        f: The map, called as `f(z, *inputs)`.
        z: Where the Jacobian is taken, usually the solution.
        inputs: Further arguments of f; the penalty's gradient reaches them.
        draws: Number of random vectors averaged over; 1 is enough in training.
        generator: Source of the vectors.
    """
    if draws < 1:
        raise ValueError(f"expected at least 1 draw, got {draws}")
    start = z.detach().requires_grad_()
    image = f(start, *inputs)
    total = image.new_zeros(len(z))
    for _ in range(draws):
        v = _normal_like(image, generator)
        (product,) = torch.autograd.grad(
            image, start, v, create_graph=True, materialize_grads=True, allow_unused=True
        )
        total = total + product.flatten(1).square().mean(1)
    return total / draws


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
    with torch.enable_grad():
        start = z.detach().requires_grad_()
        image = f(start, *inputs)
    batch, dimension = len(z), z[0].numel()
    steps = min(steps, dimension)
    v = _normal_like(image, generator).flatten(1)
    basis = [v / v.norm(dim=1, keepdim=True)]
    hessenberg = v.new_zeros(batch, steps + 1, steps)
    for k in range(steps):
        (product,) = torch.autograd.grad(
            image,
            start,
            basis[k].view_as(z),
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        # Gram-Schmidt: make the product orthogonal to the basis, twice because of rounding errors.
        w, known = product.flatten(1), torch.stack(basis, dim=1)
        for _ in range(2):
            overlap = (known @ w[:, :, None])[:, :, 0]
            w = w - (overlap[:, None] @ known)[:, 0]
            hessenberg[:, : k + 1, k] += overlap
        length = w.norm(dim=1)
        # A remainder the size of rounding errors is 0: the basis spans an invariant subspace.
        length = torch.where(
            length > 1e3 * torch.finfo(w.dtype).eps * product.flatten(1).norm(dim=1), length, 0
        )
        hessenberg[:, k + 1, k] = length
        basis.append(torch.where(length[:, None] > 0, w / length[:, None], 0))
    return torch.linalg.eigvals(hessenberg[:, :steps]).abs().amax(1)


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator else x.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
