"""The layers of the book as functions, under the names that ``torch.nn.functional`` has for them.

Nothing is defined here. Each function lives in the module of its chapter, with its matrix and its derivation.
"""

from pwl_lib.convolution import conv2d, linear
from pwl_lib.rectifiers import absolute, hardtanh, leaky_relu, prelu, relu

__all__ = ["absolute", "conv2d", "hardtanh", "leaky_relu", "linear", "prelu", "relu"]
