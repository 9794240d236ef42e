"""The layers of the book as functions, under the names that ``torch.nn.functional`` has for them.

Nothing is defined here. Each function lives in the module of its chapter, with its matrix and its derivation.
"""

from pwl_lib.argmax import soft_argmax, straight_through_argmax
from pwl_lib.convolution import conv2d, linear
from pwl_lib.logsumexp import logsumexp, lse_pool2d, mellowmax, softmax
from pwl_lib.losses import cross_entropy, l1_loss, mse_loss
from pwl_lib.maxout import maxout, maxout2d
from pwl_lib.pooling import avg_pool2d, max_pool2d
from pwl_lib.rectifiers import absolute, hardtanh, leaky_relu, prelu, relu
from pwl_lib.recurrent import lstm_cell, rnn_cell

__all__ = [
    "absolute",
    "avg_pool2d",
    "conv2d",
    "cross_entropy",
    "hardtanh",
    "l1_loss",
    "leaky_relu",
    "linear",
    "logsumexp",
    "lse_pool2d",
    "lstm_cell",
    "max_pool2d",
    "maxout",
    "maxout2d",
    "mellowmax",
    "mse_loss",
    "prelu",
    "relu",
    "rnn_cell",
    "soft_argmax",
    "softmax",
    "straight_through_argmax",
]
