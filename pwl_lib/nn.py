"""The layers of the book as modules, under the names that ``torch.nn`` has for them.

Nothing is defined here. Each module lives in the module of its chapter, beside its function.
"""

from pwl_lib.argmax import SoftArgmax, StraightThroughArgmax
from pwl_lib.convolution import Conv2d, Linear
from pwl_lib.logsumexp import LogSumExp, LSEPool2d, Softmax
from pwl_lib.losses import CrossEntropyLoss, L1Loss, MSELoss
from pwl_lib.maxout import Maxout, Maxout2d
from pwl_lib.pooling import AvgPool2d, MaxPool2d
from pwl_lib.rectifiers import Absolute, Hardtanh, LeakyReLU, PReLU, ReLU
from pwl_lib.recurrent import LSTMCell, RNNCell

__all__ = [
    "Absolute",
    "AvgPool2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Hardtanh",
    "L1Loss",
    "LSEPool2d",
    "LSTMCell",
    "LeakyReLU",
    "Linear",
    "LogSumExp",
    "MSELoss",
    "MaxPool2d",
    "Maxout",
    "Maxout2d",
    "PReLU",
    "RNNCell",
    "ReLU",
    "SoftArgmax",
    "Softmax",
    "StraightThroughArgmax",
]
