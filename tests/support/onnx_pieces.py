"""Pieces of a network that read an input ``x`` in different ways, each of a few nodes.

Each is ``write(g, c)``: it writes lines for C = c and returns the names of its outputs, which
have the shape of ``x``.
"""

from __future__ import annotations

from onnx_graphs import GraphWriter

H, W = 5, 7


def convolution(g, c):
    g.conv("x", "y", (c, c))
    return ["y"]


def plain_op(kind):
    def write(g, c):
        g.add(kind, "x", "y")
        return ["y"]

    return write


def conv_and_plain_op(g, c):
    g.conv("x", "y", (c, c))
    g.add("Sigmoid", "x", "z")
    return ["y", "z"]


def depthwise(g, c):
    g.conv("x", "y", (c, c), group=c)
    return ["y"]


def two_readers(g, c):
    g.conv("x", "a", (c, 2 * c))
    g.conv("x", "b", (c, 2 * c), kernel=1)
    g.add("Mul", "a b", "ab")
    g.conv("ab", "y", (2 * c, c))
    return ["y"]


def unblocked_reader(g, c):
    """A softmax over channels knows plain layout alone."""
    g.conv("x", "a", (c, c))
    g.add("Softmax", "x", "b", axis=1)
    g.add("Add", "a b", "y")
    return ["y"]


def output_read_inside(g, c):
    """The output is also an input of an op that knows plain layout alone, and of one that does not care."""
    g.conv("x", "y", (c, c))
    g.add("Softmax", "y", "z", axis=1)
    g.add("Tanh", "y", "t")
    return ["y", "z", "t"]


def output_read_by_conv(g, c):
    g.conv("x", "y", (c, c))
    g.add("Relu", "y", "r")
    g.conv("r", "z", (c, c))
    return ["y", "z"]


def residual(g, c):
    g.conv("x", "a", (c, c))
    g.add("Relu", "a", "r")
    g.conv("r", "b", (c, c))
    g.add("Add", "b x", "s")
    g.add("Relu", "s", "y")
    return ["y"]


def residual_then_read(g, c):
    """What reads x besides the sum does not lie before it."""
    g.conv("x", "a", (c, c))
    g.add("Relu", "a", "r")
    g.conv("r", "b", (c, c))
    g.add("Add", "b x", "y")
    g.conv("x", "z", (c, c), kernel=1)
    return ["y", "z"]


def sums_in_a_row(g, c):
    """x is added twice: of the two sums the last one alone may take its place."""
    g.conv("x", "a", (c, c))
    g.add("Add", "a x", "y")
    g.conv("y", "b", (c, c))
    g.add("Add", "b x", "z")
    return ["y", "z"]


def convolved_and_added(g, c):
    """One convolution reads x and has x added: in place it would read what it wrote."""
    g.conv("x", "a", (c, c))
    g.add("Add", "a x", "y")
    return ["y"]


READERS = {
    "convolution": convolution,
    "relu": plain_op("Relu"),
    "sigmoid": plain_op("Sigmoid"),
    "convolution and sigmoid": conv_and_plain_op,
    "depthwise": depthwise,
    "two convolutions": two_readers,
    "unblocked": unblocked_reader,
    "output read inside": output_read_inside,
    "output read by a convolution": output_read_by_conv,
    "residual": residual,
    "residual, then read": residual_then_read,
    "sums in a row": sums_in_a_row,
    "convolved and added": convolved_and_added,
}


def piece(write, channels):
    g = GraphWriter()
    outputs = write(g, channels)
    return g.model({"x": (channels, H, W)}, dict.fromkeys(outputs, (channels, H, W)))
