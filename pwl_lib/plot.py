"""Figures of the book: one style, and the drawings that several cells or chapters share.

Needs matplotlib, the extra ``pwl_lib[plot]``. Figures are transparent with dark ink; the site inverts their lightness in dark mode and keeps
the hues, so every colour here has a contrast of at least 4.5 to white.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from cycler import cycler
from matplotlib.axes import Axes
from torch import Tensor

from pwl_lib.piecewise_linear import activation_pattern, affine_piece

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PURPLE",
    "RED",
    "barycentric",
    "pieces",
    "style",
    "supporting_lines",
]

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#1b66a8", "#b0500a", "#1f7a4a", "#b5303f", "#7a4aa5", "#6b6b6b"
INK = "#222222"


@contextmanager
def style(**overrides: Any) -> Iterator[None]:
    """The look of every figure of the book, for a ``with`` block; ``overrides`` are matplotlib rc parameters.

    Example:
        >>> with style():
        ...     figure, axes = plt.subplots()
        >>> plt.close(figure)
    """
    settings = {
        "figure.figsize": (6.4, 3.4),
        "figure.dpi": 110,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.facecolor": "none",
        "figure.constrained_layout.use": True,
        "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY]),
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#999999",
        "grid.alpha": 0.25,
        "lines.linewidth": 2.0,
        "legend.frameon": False,
        "font.size": 11,
    }
    with mpl.rc_context({**settings, **overrides}):
        yield


def pieces(
    model: Callable[[Tensor], Tensor], ax: Axes, box: tuple[float, float] = (-1.0, 1.0), resolution: int = 400
) -> int:
    """Draws the affine pieces of ``model: (B, 2) -> (B, 1)`` on a square, and returns how many code words the grid met.

    The hue of a piece is the direction of its gradient, its strength the size of the gradient; edges are drawn where the code word
    changes between neighbours.

    Args:
        model: a piecewise linear module or function of two numbers.
        ax: where to draw.
        box: the square is ``box`` times ``box``.
        resolution: points on a side.

    Raises:
        ValueError: ``model`` is not piecewise linear, or does not map two numbers to one.

    Example:
        >>> figure, ax = plt.subplots()
        >>> pieces(lambda x: torch.relu(x[:, :1]) + torch.relu(x[:, 1:]), ax, resolution=20)
        4
        >>> plt.close(figure)
    """
    side = torch.linspace(*box, resolution, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    words, word = torch.unique(activation_pattern(model, x), dim=0, return_inverse=True)
    first = torch.full((len(words),), len(x)).scatter_reduce(0, word, torch.arange(len(x)), "amin")
    slope = affine_piece(model, x[first]).A
    if slope.shape[1:] != (1, 2):
        raise ValueError(f"model must map (B, 2) to (B, 1), got a Jacobian of shape {tuple(slope.shape[1:])}")
    gradient = slope[:, 0]
    size = gradient.norm(dim=1)
    hue = (torch.atan2(gradient[:, 1], gradient[:, 0]) / (2 * torch.pi)) % 1
    strength = size / size.quantile(0.95).clamp(min=1e-12)
    colour = torch.stack([hue, (0.15 + 0.55 * strength).clamp(max=0.75), torch.full_like(hue, 0.92)], dim=1)
    grid = word.reshape(resolution, resolution).T  # rows are the second coordinate
    image = torch.as_tensor(mpl.colors.hsv_to_rgb(colour.numpy()))[grid]
    edge = torch.zeros_like(grid, dtype=torch.bool)
    edge[:, 1:] |= grid[:, 1:] != grid[:, :-1]
    edge[1:] |= grid[1:] != grid[:-1]
    image[edge] = image[edge] * 0.45
    ax.imshow(image.numpy(), origin="lower", extent=(*box, *box), interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    return len(words)


def supporting_lines(
    function: Callable[[Tensor], Tensor],
    at: float,
    slopes: Sequence[float],
    ax: Axes,
    box: tuple[float, float] = (-1.5, 1.5),
) -> list[bool]:
    """Draws a function of one number, and lines through one of its points: green where they stay below it, dashed red where they do not.

    Args:
        function: elementwise, of one tensor.
        at: where the lines touch the graph.
        slopes: one for each line.
        ax: where to draw.
        box: the interval drawn.

    Returns:
        For each slope, whether its line supports the function on ``box``.

    Example:
        >>> figure, ax = plt.subplots()
        >>> supporting_lines(torch.relu, 0.0, [0.5, -1.0], ax)
        [True, False]
        >>> plt.close(figure)
    """
    x = torch.linspace(*box, 301, dtype=torch.float64)
    y, height = function(x), function(torch.tensor(at, dtype=torch.float64))
    lines = [height + slope * (x - at) for slope in slopes]
    below = [bool((line <= y + 1e-12).all()) for line in lines]
    for line, supports in zip(lines, below, strict=True):
        ax.plot(x, line, color=GREEN if supports else RED, linestyle="-" if supports else "--", linewidth=1.2)
    ax.plot(x, y, color=BLUE, linewidth=3)
    ax.plot(at, height, "o", color=INK)
    ax.set(ylim=(float(y.min()) - 0.8, float(y.max()) + 0.1), xlabel="x")
    return below


def barycentric(points: Mapping[str, Tensor], ax: Axes) -> None:
    """Draws convex weights on three corners as points of a triangle, each with its name.

    Args:
        points: by name, weights ``(3,)`` that sum to 1; those with a negative entry lie outside, and are drawn in red.
        ax: where to draw.

    Example:
        >>> figure, ax = plt.subplots()
        >>> barycentric({"centre": torch.ones(3) / 3}, ax)
        >>> plt.close(figure)
    """
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]], dtype=torch.float64)
    ax.fill(*corners.T, facecolor=GREEN, alpha=0.2, edgecolor="none")
    ax.plot(*corners[[0, 1, 2, 0]].T, color=GREEN)
    for name, weights in points.items():
        x, y = (weights.double() @ corners).tolist()
        colour = RED if bool((weights < 0).any()) else INK
        ax.plot(x, y, "o", color=colour)
        ax.annotate(name, (x, y), xytext=(7, 5), textcoords="offset points", color=colour, fontsize=9)
    ax.set(aspect="equal", xlim=(-0.1, 1.35), ylim=(-0.1, 1.0))
    ax.axis("off")
