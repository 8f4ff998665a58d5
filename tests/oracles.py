"""Attention schemes a second time: slow, obvious, and independent of the ones under test.

Everything here is dense attention over all tokens under an explicit table of who may attend to whom, computed from the
tokens' coordinates one pair at a time. Nothing is imported from the rooms under test; weights are taken from the module
under test.
"""

import itertools
import math

import torch


def coordinates(grid):
    """The (t, h, w) of every token, in token order."""
    return list(itertools.product(*(range(n) for n in grid)))


def attention(x, keys, q, k, v, proj, num_heads, allowed=None, bias=None):
    """One clip: x (n, d) attends to keys (s, d); q, k, v and proj are functions; bias (m, n, s); one head at a time."""
    queries, keys, values = q(x), k(keys), v(keys)
    c = queries.shape[-1] // num_heads
    heads = []
    for m in range(num_heads):
        part = slice(m * c, (m + 1) * c)
        scores = queries[:, part] @ keys[:, part].T / math.sqrt(c)
        if bias is not None:
            scores = scores + bias[m]
        weights = scores.exp()
        if allowed is not None:
            weights = weights * allowed
        heads.append(weights / weights.sum(1, keepdim=True) @ values[:, part])
    return proj(torch.cat(heads, 1))


def rows(linear, part, parts):
    """The part-th of `parts` equal slices of a linear map's outputs, as a function."""
    d = linear.out_features // parts
    weight, bias = linear.weight[part * d : (part + 1) * d], linear.bias[part * d : (part + 1) * d]
    return lambda x: x @ weight.T + bias


def self_attention(x, layer, num_heads, allowed=None, bias=None):
    """One clip (n, d) with the weights `layer.qkv` and `layer.proj`."""
    q, k, v = (rows(layer.qkv, part, 3) for part in range(3))
    return attention(x, x, q, k, v, rows(layer.proj, 0, 1), num_heads, allowed, bias)


def fit(grid, window, shift=(0, 0, 0)):
    """The window and shift really used: the window clipped to the grid, and no shift along an axis so covered."""
    used = tuple(min(n, size) for n, size in zip(grid, window, strict=True))
    return used, tuple(s if n > size else 0 for n, size, s in zip(grid, window, shift, strict=True))


def whole_windows(grid, window):
    """The grid padded at the end to whole windows."""
    return tuple(math.ceil(n / size) * size for n, size in zip(grid, window, strict=True))


def windows_allowed(grid, window, shift=(0, 0, 0)):
    """Who shares a window after a cyclic shift, without having been brought together by the wrap-around."""
    window, shift = fit(grid, window, shift)
    padded = whole_windows(grid, window)
    at = coordinates(grid)
    allowed = torch.zeros(len(at), len(at))
    for i, a in enumerate(at):
        for j, b in enumerate(at):
            fine = True
            for axis in range(3):
                n, size, s = padded[axis], window[axis], shift[axis]
                rolled_a, rolled_b = (a[axis] - s) % n, (b[axis] - s) % n
                same_window = rolled_a // size == rolled_b // size
                together_before = rolled_a - rolled_b == a[axis] - b[axis]
                fine = fine and same_window and together_before
            allowed[i, j] = fine
    return allowed


def offset_bias(table, nominal, grid):
    """bias (m, n, n): the row of the table for the offset of each pair; offsets that it does not cover have none."""
    at = coordinates(grid)
    bias = torch.zeros(table.shape[1], len(at), len(at), dtype=table.dtype)
    for i, a in enumerate(at):
        for j, b in enumerate(at):
            row = 0
            covered = True
            for axis, size in enumerate(nominal):
                offset = a[axis] - b[axis]
                covered = covered and abs(offset) < size
                row = row * (2 * size - 1) + offset + size - 1
            if covered:
                bias[:, i, j] = table[row]
    return bias


def published_bias(table, nominal, grid, window, shift):
    """The released Video Swin's bias: the first rows and columns of the nominal window's table of offsets, whichever
    tokens these belonged to, by position inside the window after the shift."""
    nominal_at = coordinates(nominal)
    padded = whole_windows(grid, window)
    positions = []
    for a in coordinates(grid):
        inside = [((a[axis] - shift[axis]) % padded[axis]) % window[axis] for axis in range(3)]
        positions.append(nominal_at[(inside[0] * window[1] + inside[1]) * window[2] + inside[2]])
    bias = torch.zeros(table.shape[1], len(positions), len(positions), dtype=table.dtype)
    for i, a in enumerate(positions):
        for j, b in enumerate(positions):
            row = 0
            for axis, size in enumerate(nominal):
                row = row * (2 * size - 1) + a[axis] - b[axis] + size - 1
            bias[:, i, j] = table[row]
    return bias


def padded_clip(x, padded):
    """x (t, h, w, d) with zeros at the end of each axis."""
    y = torch.zeros(*padded, x.shape[-1], dtype=x.dtype)
    y[: x.shape[0], : x.shape[1], : x.shape[2]] = x
    return y


def pooled(x, block, reduce):
    """One key for each block of x (t, h, w, d): reduce(the real tokens {offset in the block: (d,)}) -> (d,)."""
    grid = x.shape[:3]
    cells = [range(math.ceil(n / size)) for n, size in zip(grid, block, strict=True)]
    y = torch.zeros(*(len(c) for c in cells), x.shape[-1], dtype=x.dtype)
    for cell in itertools.product(*cells):
        tokens = {}
        for offset in coordinates(block):
            at = tuple(c * size + o for c, size, o in zip(cell, block, offset, strict=True))
            if all(a < n for a, n in zip(at, grid, strict=True)):
                tokens[offset] = x[at]
        y[cell] = reduce(tokens)
    return y


def mean(tokens):
    return torch.stack(list(tokens.values())).mean(0)


def convolution(conv):
    """What a convolution makes of one block: a sum over its real tokens, and the bias."""

    def reduce(tokens):
        total = conv.bias.clone()
        for offset, token in tokens.items():
            weight = conv.weight[(slice(None), slice(None), *offset)]  # (d, d) or, depthwise, (d, 1)
            total = total + (weight[:, 0] * token if weight.shape[1] == 1 else weight @ token)
        return total

    return reduce


def normed(x, layer):
    """Layer norm over the last axis."""
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + layer.eps) * layer.weight + layer.bias


def batch_normed(x, layer):
    """Batch norm in evaluation, channels last."""
    return (x - layer.running_mean) / torch.sqrt(layer.running_var + layer.eps) * layer.weight + layer.bias
