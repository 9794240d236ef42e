"""The point of least norm in the hull of finitely many points, by Wolfe's algorithm (1976)."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_to_origin(points: Tensor) -> Tensor:
    """Wolfe's algorithm: walks from face to face of the hull, always nearer to the origin, and ends after finitely many."""
    if not bool(points.any()):
        return torch.zeros_like(points[0])
    # Scaled, so that neither tiny nor huge points lose digits; on the CPU, whose least squares take planes of any rank.
    P = points.detach().cpu().double()
    size = P.abs().amax()
    P = P / size
    radius = torch.linalg.vector_norm(P, dim=1).amax()
    support, weight = [int(P.square().sum(1).argmin())], P.new_ones(1)
    nearest = P[support[0]]
    while True:
        gap = (nearest - P) @ nearest
        best = int(gap.argmax())
        if best in support or gap[best] <= 1e-15 * radius * nearest.norm():
            break
        support, weight = _nearest_on_face(P, [*support, best], torch.cat([weight, weight.new_zeros(1)]))
        candidate = weight @ P[support]
        if not candidate.norm() < nearest.norm():
            if gap[best] > 1e-10 * radius**2:
                raise RuntimeError(f"the search for the least-norm element stopped {float(gap[best]):.1e} short of it")
            break  # nothing but rounding is left to gain
        nearest = candidate
    return (nearest * size).to(points)


def _nearest_on_face(P: Tensor, support: list[int], weight: Tensor) -> tuple[list[int], Tensor]:
    """The minor cycle: drops points of ``support`` until the point of least norm in their plane has positive weights."""
    while True:
        affine = _affine_minimiser(P[support])
        shrinking = affine <= 1e-14
        if not bool(shrinking.any()):
            return support, affine
        # Go from weight towards the minimiser of the plane until the first weight vanishes, and drop that point.
        step = torch.where(weight > affine, weight / (weight - affine), 0.0)[shrinking].amin()
        weight = weight + step * (affine - weight)
        dropped = shrinking & (weight <= weight[shrinking].amin().clamp(min=1e-14))
        keep = (~dropped).nonzero().flatten().tolist()
        support = [support[i] for i in keep]
        weight = weight[keep] / weight[keep].sum()


def _affine_minimiser(Q: Tensor) -> Tensor:
    """The weights, of sum 1, of the point of least norm in the plane through the rows of ``Q``."""
    base, edges = Q[0], Q[1:] - Q[0]
    rest = torch.linalg.lstsq(edges.T, -base[:, None], driver="gelsd").solution[:, 0]
    return torch.cat([1 - rest.sum()[None], rest])
