"""Figures of the book: one style, and the drawings that several cells or chapters share.

Needs matplotlib, the extra ``pwl_lib[plot]``. Figures are transparent with dark ink; the site inverts their lightness in
dark mode and keeps the hues, so every colour here has a contrast of at least 4.5 to white.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from cycler import cycler
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from torch import Tensor

from pwl_lib._validation import check_one_of
from pwl_lib.piecewise_linear import activation_pattern, affine_piece

if TYPE_CHECKING:
    from pwl_lib.regions import Regions

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PURPLE",
    "RED",
    "barycentric",
    "bridge_rectifier",
    "draw_regions",
    "draw_surface",
    "matrix",
    "pieces",
    "selection",
    "star_rectifier",
    "style",
    "supporting_lines",
]

BLUE = "#1b66a8"
"""The first colour of a figure, for what it is about."""
ORANGE = "#b0500a"
"""The second colour."""
GREEN = "#1f7a4a"
"""The third colour; for what is right, where red is wrong."""
RED = "#b5303f"
"""The fourth colour; for what is wrong."""
PURPLE = "#7a4aa5"
"""The fifth colour."""
GREY = "#6b6b6b"
"""The sixth colour, for what stands in the background."""
INK = "#222222"
"""The colour of text and axes."""


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
    grid = word.reshape(resolution, resolution).T  # rows are the second coordinate
    image = _colour_of_slopes(slope[:, 0])[grid]
    edge = torch.zeros_like(grid, dtype=torch.bool)
    edge[:, 1:] |= grid[:, 1:] != grid[:, :-1]
    edge[1:] |= grid[1:] != grid[:-1]
    image[edge] = image[edge] * 0.45
    ax.imshow(image.numpy(), origin="lower", extent=(*box, *box), interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    return len(words)


def _colour_of_slopes(gradient: Tensor) -> Tensor:
    """``(P, 2)`` gives ``(P, 3)``: the hue is the direction, the strength the size."""
    size = gradient.norm(dim=1)
    hue = (torch.atan2(gradient[:, 1], gradient[:, 0]) / (2 * torch.pi)) % 1
    usual = size.sort().values[int(0.95 * (len(size) - 1))].clamp(min=1e-12)
    strength = (0.12 + 0.45 * size / usual).clamp(max=0.62).where(size > 0, 0)
    return torch.as_tensor(mpl.colors.hsv_to_rgb(torch.stack([hue, strength, torch.full_like(hue, 0.94)], 1).numpy()))


def _colour_of_numbers(number: Tensor) -> Tensor:
    """A colour for each whole number, such that numbers near each other have colours far apart; all are light."""
    hue = (number * 0.6180339887498949) % 1
    strength = 0.22 + 0.3 * ((number * 0.7548776662466927) % 1)
    return torch.as_tensor(mpl.colors.hsv_to_rgb(torch.stack([hue, strength, torch.full_like(hue, 0.94)], 1).numpy()))


def draw_regions(regions: Regions, ax: Axes | None = None, color: str = "slope", output: int = 0) -> Axes:
    """Draws the polygons of a slice in the plane of (s, t), with their edges; what their colours stand for can be chosen.

    Args:
        regions: of :func:`pwl_lib.regions.slice_regions`.
        ax: where to draw; a new figure without it.
        color: ``"slope"``: the hue is the direction of the gradient by (s, t), the strength its size, and grey is slope 0.
            ``"pattern"``: any colour for each polygon. ``"map"`` and ``"piece"``: any colour for each affine map, and for each
            connected affine piece. ``"value"``: the output at the centroid, orange below 0 and blue above, the stronger the
            farther. ``"none"``: edges alone.
        output: whose slope or value is shown, of several outputs.

    Returns:
        The axes.

    Raises:
        ValueError: ``color`` is none of these, or there is no such output.

    Example:
        >>> from pwl_lib.regions import slice_regions
        >>> found = slice_regions(torch.relu, torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> ax = draw_regions(found)
        >>> len(ax.collections[0].get_paths())
        4
        >>> plt.close(ax.figure)
    """
    check_one_of("color", color, ("slope", "pattern", "map", "piece", "value", "none"))
    _check_output(regions, output, color in ("slope", "value"))
    if ax is None:
        ax = plt.figure().add_subplot()
    face: Tensor | None = None
    if color == "slope":
        face = _colour_of_slopes(regions.slope[:, output])
    elif color == "value":
        value = (regions.slope[:, output] * regions.centroid).sum(1) + regions.offset[:, output]
        strength = 0.75 * value.abs() / value.abs().amax().clamp(min=1e-300)
        ends = torch.tensor([mpl.colors.to_rgb(ORANGE), mpl.colors.to_rgb(BLUE)], dtype=torch.float64)
        face = 0.97 + strength[:, None] * (ends[(value > 0).long()] - 0.97)
    elif color != "none":
        number = {"map": "affine_map", "piece": "connected_piece"}.get(color)
        face = _colour_of_numbers(torch.arange(len(regions)) if number is None else getattr(regions, number))
    # Edges get thinner where there are many, so that colours stay to be seen.
    width = min(0.8, 12 / max(len(regions), 1) ** 0.5)
    polygons = [polygon.numpy() for polygon in regions.polygons]
    ax.add_collection(
        PolyCollection(
            polygons,
            facecolors="none" if face is None else face.numpy(),
            edgecolors=INK if face is None else "#444444",
            linewidths=width,
        )
    )
    (left, right), (low, high) = regions.box
    ax.set(xlim=(left, right), ylim=(low, high), xlabel="s", ylabel="t")
    ax.set_aspect("equal")
    ax.grid(visible=False)
    return ax


def draw_surface(regions: Regions, ax: Any, output: int = 0) -> Any:
    """Draws the graph of a model over a plane as the faceted surface that it is: one flat facet for each polygon, coloured by its slope.

    Args:
        regions: of :func:`pwl_lib.regions.slice_regions`.
        ax: three-dimensional axes, of ``plt.figure().add_subplot(projection="3d")``.
        output: which output is the height.

    Returns:
        The collection of the facets.

    Raises:
        ValueError: there is no such output.

    Example:
        >>> from pwl_lib.regions import slice_regions
        >>> found = slice_regions(torch.abs, torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> figure = plt.figure()
        >>> facets = draw_surface(found, figure.add_subplot(projection="3d"))
        >>> plt.close(figure)
    """
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]

    _check_output(regions, output, True)
    points = torch.cat([regions.vertices, regions.values[:, output, None]], dim=1)
    start, number = regions.corners
    facets = [facet.numpy() for facet in points[number].split(start.diff().tolist())]
    face = _colour_of_slopes(regions.slope[:, output]).numpy()
    collection = Poly3DCollection(facets, facecolors=face, edgecolors="#444444", linewidths=0.3)
    ax.add_collection3d(collection)
    (left, right), (low, high) = regions.box
    height = regions.values[:, output]
    bottom, top = float(height.min()), float(height.max())
    ax.set(
        xlim=(left, right), ylim=(low, high), zlim=(bottom, top if top > bottom else bottom + 1), xlabel="s", ylabel="t"
    )
    return collection


def _check_output(regions: Regions, output: int, needed: bool) -> None:
    count = regions.values.shape[1]
    if needed and not 0 <= output < count:
        raise ValueError(f"output must be a number below the {count} outputs of the model, got {output}")


def matrix(values: Tensor, ax: Axes, blocks: tuple[int, int] | None = None) -> int:
    """Draws a matrix as a picture: a square for every entry that is not 0, and returns how many there are.

    Blue is positive and orange negative, the stronger the larger the entry; 0 is left empty.

    Args:
        values: ``(rows, columns)``, dense or sparse; row 0 is on top.
        ax: where to draw.
        blocks: the rows and columns of a block, around each of which a line is drawn.

    Returns:
        The number of entries that are not 0.

    Example:
        >>> figure, ax = plt.subplots()
        >>> matrix(torch.eye(4), ax, blocks=(2, 2))
        4
        >>> plt.close(figure)
    """
    dense = values.detach().to_dense().double()
    rows, columns = dense.shape
    strength = dense.abs() / dense.abs().amax().clamp(min=1e-300) if dense.numel() else dense
    image = torch.zeros(rows, columns, 4)
    for colour, there in ((BLUE, dense > 0), (ORANGE, dense < 0)):
        image[there] = torch.tensor(mpl.colors.to_rgba(colour))
    image[..., 3] = torch.where(dense != 0, 0.35 + 0.65 * strength, 0)
    ax.imshow(image.numpy(), extent=(0, columns, rows, 0), interpolation="nearest")
    down, right = blocks or (rows, columns)
    for y in range(0, rows + 1, down):
        ax.axhline(y, color=GREY, linewidth=0.8)
    for x in range(0, columns + 1, right):
        ax.axvline(x, color=GREY, linewidth=0.8)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return int((dense != 0).sum())


def selection(image: Tensor, output: Tensor, winner: Tensor, ax: Axes) -> None:
    """Draws an image of a few numbers, its pooled image to the right, and a line from every output to the pixel that it picked.

    Args:
        image: ``(H, W)``.
        output: ``(H', W')``.
        winner: of the shape of ``output``, row times W plus column of the pixel.
        ax: where to draw.

    Example:
        >>> figure, ax = plt.subplots()
        >>> selection(torch.tensor([[1.0, 3.0], [2.0, 8.0]]), torch.tensor([[8.0]]), torch.tensor([[3]]), ax)
        >>> plt.close(figure)
    """
    (height, width), (rows, columns) = image.shape, output.shape
    right, down = width + 1.5, (height - rows) / 2
    picked = winner.flatten().bincount(minlength=height * width).reshape(height, width) > 0
    halo = [patheffects.withStroke(linewidth=3, foreground="#f7f7f7")]
    for values, colour, filled, corner in ((image, BLUE, picked, (0.0, 0.0)), (output, ORANGE, None, (right, down))):
        for (i, j), value in zip(torch.cartesian_prod(*map(torch.arange, values.shape)).tolist(), values.flatten()):
            x, y = corner[0] + j, corner[1] + i
            face = mpl.colors.to_rgba(colour, 0.3) if filled is None or filled[i, j] else "none"
            ax.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=face, edgecolor=GREY, linewidth=0.8))
            ax.annotate(f"{value:g}", (x + 0.5, y + 0.5), ha="center", va="center", zorder=4, path_effects=halo)
    for n, place in enumerate(winner.flatten().tolist()):
        start = right + n % columns + 0.5, down + n // columns + 0.87  # below the number
        end = place % width + 0.86, place // width + 0.87
        ax.plot(*zip(start, end), color=ORANGE, linewidth=1.1, alpha=0.8)
        ax.plot(*end, "o", color=ORANGE, markersize=4)
    ax.set(xlim=(-0.1, right + columns + 0.1), ylim=(height + 0.1, -0.1))
    ax.set_aspect("equal")
    ax.axis("off")


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
        # A name stands beside the triangle, past its edge at this height, with a thin line to its point.
        right, edge = x > 0.45, 0.5 + (0.866 - y) / 1.732
        at = max(x, edge) + 0.06 if right else min(x, 1 - edge) - 0.06
        ax.plot([x, at], [y, y], color=GREY, linewidth=0.8, zorder=1)
        ax.annotate(
            name,
            (at, y),
            (3 if right else -3, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            ha="left" if right else "right",
        )
    ax.set_aspect("equal")
    ax.margins(0.05)
    ax.axis("off")


def star_rectifier(ax: Axes) -> None:
    """Draws the circuit of three sources, each with a diode to a common output, and a resistor from there back to their common end.

    Args:
        ax: where to draw.

    Example:
        >>> figure, ax = plt.subplots()
        >>> star_rectifier(ax)
        >>> plt.close(figure)
    """
    for height, name in ((2.0, "$v_1$"), (1.0, "$v_2$"), (0.0, "$v_3$")):
        _source(ax, (0.0, height), (1.4, height), name)
        _diode(ax, (1.4, height), (2.8, height))
        ax.plot([0.0, 2.8], [height, height], "o", color=INK, markersize=4)
    _wire(ax, (2.8, 0.0), (2.8, 2.0), (4.0, 2.0))
    _resistor(ax, (4.0, 2.0), (4.0, -0.9), "$R$")
    _wire(ax, (4.0, -0.9), (0.0, -0.9), (0.0, 2.0))
    ax.annotate("$V$", (3.4, 2.0), (0, 5), textcoords="offset points", ha="center")
    _bare(ax)


def bridge_rectifier(ax: Axes) -> None:
    """Draws the circuit of four diodes between a source and a resistor.

    Args:
        ax: where to draw.

    Example:
        >>> figure, ax = plt.subplots()
        >>> bridge_rectifier(ax)
        >>> plt.close(figure)
    """
    a, b, p, q = (0.0, 0.0), (3.0, 0.0), (1.5, 1.4), (1.5, -1.4)
    for start, end in ((a, p), (b, p), (q, a), (q, b)):
        _diode(ax, start, end)
    _resistor(ax, p, q, "$R$")
    _wire(ax, a, (-0.7, 0.0), (-0.7, -2.0))
    _source(ax, (-0.7, -2.0), (3.7, -2.0), "$v$")
    _wire(ax, (3.7, -2.0), (3.7, 0.0), b)
    for name, corner, offset in (("$a$", a, (-7, 6)), ("$b$", b, (7, 6)), ("$p$", p, (0, 7)), ("$q$", q, (12, -9))):
        ax.plot(*corner, "o", color=INK, markersize=4)
        ax.annotate(name, corner, offset, textcoords="offset points", ha="center")
    _bare(ax)


def _wire(ax: Axes, *points: Sequence[float]) -> None:
    ax.plot(*zip(*points, strict=True), color=INK, linewidth=1.2)


def _part(start: Sequence[float], end: Sequence[float], half: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The middle of a wire, the directions along it and to its left, and the ends of a part of length 2 half in its middle."""
    tail, head = torch.tensor(start), torch.tensor(end)
    along = (head - tail) / (head - tail).norm()
    middle = (tail + head) / 2
    return (
        middle,
        along,
        torch.stack([-along[1], along[0]]),
        torch.stack([middle - half * along, middle + half * along]),
    )


def _diode(ax: Axes, start: Sequence[float], end: Sequence[float]) -> None:
    """A wire with a triangle that points from ``start`` to ``end``, and a bar at its tip."""
    _, _, left, (base, tip) = _part(start, end, 0.18)
    _wire(ax, start, end)
    ax.fill(*torch.stack([tip, base + 0.18 * left, base - 0.18 * left]).T, color=BLUE, zorder=3)
    ax.plot(*torch.stack([tip + 0.18 * left, tip - 0.18 * left]).T, color=BLUE, linewidth=2, zorder=3)


def _resistor(ax: Axes, start: Sequence[float], end: Sequence[float], name: str) -> None:
    """A wire with a zigzag in its middle, and its name beside it."""
    middle, along, left, ends = _part(start, end, 0.5)
    across = 0.12 * torch.tensor([0.0, *[1.0, -1.0] * 4, 0.0])
    steps = torch.linspace(-0.5, 0.5, len(across))
    _wire(ax, start, ends[0].tolist())
    _wire(ax, ends[1].tolist(), end)
    ax.plot(*(middle + steps[:, None] * along + across[:, None] * left).T, color=ORANGE, linewidth=1.5)
    ax.annotate(name, tuple(middle.tolist()), (10, -4), textcoords="offset points")


def _source(ax: Axes, start: Sequence[float], end: Sequence[float], name: str) -> None:
    """A wire with a circle in its middle, and the name of the voltage in the circle."""
    middle, _, _, ends = _part(start, end, 0.28)
    _wire(ax, start, ends[0].tolist())
    _wire(ax, ends[1].tolist(), end)
    ax.add_patch(plt.Circle(tuple(middle.tolist()), 0.28, facecolor="none", edgecolor=GREEN, linewidth=1.5))
    ax.annotate(name, tuple(middle.tolist()), ha="center", va="center")


def _bare(ax: Axes) -> None:
    ax.set_aspect("equal")
    ax.margins(0.08)
    ax.axis("off")
