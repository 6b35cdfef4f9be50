"""Sparse tensors: the only place that takes one, as that of an embedding's gradient.

What is kept is what the dense tensor would have given, but that one is never made: it may be a
thousand times larger than what the gradient holds.
"""

from __future__ import annotations

import torch

from filmstrip.capture._budget import Take


def settled(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sparse tensor with one entry a place, as optimizers do; a dense one as it is.

    How many places there are is known to the host alone: an accelerator is waited for.

    Examples
    --------
    >>> once = torch.tensor([0.0, 2.0]).to_sparse()
    >>> settled(once + once).values()
    tensor([4.])
    """
    if tensor.layout is not torch.sparse_coo:
        return tensor
    return tensor.coalesce() if tensor.sparse_dim() else tensor.to_dense()


def entries(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the values that a settled tensor holds, and how many zeros it does not.

    Examples
    --------
    >>> entries(torch.tensor([0.0, 2.0, 0.0]).to_sparse())
    (tensor([2.]), 2)
    """
    if tensor.layout is not torch.sparse_coo:
        return tensor, 0
    values = tensor.values()
    parts = 2 if tensor.is_complex() else 1
    return values, (tensor.numel() - values.numel()) * parts


def add_zeros(zeros: int, values: torch.Tensor, counts: torch.Tensor | None = None) -> None:
    """Add zeros to the statistics and the histogram of what a tensor holds, in place.

    Examples
    --------
    >>> values = torch.tensor([1.0, 0, 0, 0, 0, 5, 5, 5, 25])
    >>> add_zeros(3, values)
    >>> values.tolist()
    [4.0, 0.0, 0.0, 0.0, 3.0, 0.0, 5.0, 5.0, 25.0]
    """
    if zeros:
        values[0] += zeros
        values[4] += zeros
        none = values.new_zeros(())
        values[5] = torch.fmin(values[5], none)
        values[6] = torch.fmax(values[6], none)
        if counts is not None:
            counts[0] += zeros


def part(tensor: torch.Tensor, take: Take) -> torch.Tensor:
    """Return the part of a settled sparse tensor that a frame holds, dense.

    Examples
    --------
    >>> tensor = torch.arange(8.0).view(4, 2).to_sparse()
    >>> part(tensor, Take((2, 2), "float32", stride=2))
    tensor([[0., 1.],
            [4., 5.]])
    """
    places, values, shape = tensor.indices(), tensor.values(), list(tensor.shape)
    if take.samples is not None:
        shape[0] = min(take.samples, shape[0])
        inside = places[0] < shape[0]
        places, values = places[:, inside], values[inside]
    if take.stride > 1:
        shape[take.axis] = -(-shape[take.axis] // take.stride)
        if take.axis < len(places):
            hit = places[take.axis] % take.stride == 0
            places, values = places[:, hit], values[hit]
            places[take.axis] //= take.stride
        else:
            inner = take.axis - len(places) + 1
            values = values[(slice(None),) * inner + (slice(None, None, take.stride),)]
    dense = values.new_zeros(shape)
    dense[tuple(places)] = values
    return dense
