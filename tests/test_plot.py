"""The style of the figures, and the drawing of the pieces."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

from pwl_lib import plot


def luminance(colour):
    """The relative luminance of the Web Content Accessibility Guidelines."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(colour)]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


@pytest.mark.parametrize("name", ["BLUE", "ORANGE", "GREEN", "RED", "PURPLE", "GREY", "INK"])
def test_every_colour_can_be_read_on_white(name):
    assert 1.05 / (luminance(getattr(plot, name)) + 0.05) >= 4.5


def test_the_style_is_left_behind_with_its_block():
    plt.get_backend()  # matplotlib looks for its backend when it is first asked
    before = mpl.rcParams.copy()
    with plot.style(**{"font.size": 20}):
        assert mpl.rcParams["font.size"] == 20
        assert mpl.rcParams["figure.facecolor"] == "none"
    assert mpl.rcParams == before


def test_pieces_counts_the_code_words_and_draws_them_in_their_places():
    figure, ax = plt.subplots()
    # One kink, along the second axis: the lower half has slope 0, the upper half slope 1.
    assert plot.pieces(lambda x: torch.relu(x[:, 1:]), ax, resolution=40) == 2
    image = ax.images[0].get_array()
    assert (image[5] == image[5, 0]).all()
    assert (image[35] == image[35, 0]).all()
    assert not (image[5, 0] == image[35, 0]).all()
    plt.close(figure)


def test_pieces_refuses_a_model_of_the_wrong_shape():
    figure, ax = plt.subplots()
    with pytest.raises(ValueError, match=r"model must map \(B, 2\) to \(B, 1\)"):
        plot.pieces(torch.relu, ax, resolution=4)
    plt.close(figure)
