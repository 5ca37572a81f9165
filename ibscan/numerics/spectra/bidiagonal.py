"""Singular values of many tiny matrices at once: a library's call for each costs more than its work.

Every step is one operation on long rows, an element of all matrices at a time; no matrix waits for those beside it.
Nothing is squared before the matrix is bidiagonal: the squares of a bidiagonal matrix's elements hold its singular
values to full relative precision, as the elements of a Gram matrix do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["stacked_values"]

EPS = torch.finfo(torch.float64).eps
# Steps for each singular value of all matrices, and then of those alone that need more. What has not converged after
# them is left to the library.
STEPS, MORE_STEPS = 3, 2
# Squares of squares beyond these leave the range of float64; a zero singular value is among what does.
LEAST, MOST = 1e-140, 1e140
# So many roundings may have made a bound too large.
SPARE = 64


def stacked_values(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return singular values, and which matrices' are those of a backward stable SVD; the others may be anything.

    Args:
        matrix: Shape (..., D, k), float64, finite.

    Returns:
        In descending order, shape (..., min(D, k)), and shape (...), bool.

    Source:
        Golub and Kahan 1965 for the bidiagonal form; Fernando and Parlett 1994 for its singular values.
    """
    lead = matrix.shape[:-2]
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    # A copy, which is worked in, of which the matrices come last.
    own = wide.movedim((-2, -1), (0, 1)).clone(memory_format=torch.contiguous_format)
    diagonal, beside = _bidiagonal(own.flatten(2))
    squares, certain = _eigenvalues(diagonal, beside)
    # Written so that a NaN is not certain.
    certain &= (squares[-1] > LEAST) & (squares[0] < MOST)
    return squares.sqrt_().view(-1, *lead).movedim(0, -1), certain.view(lead)


def _bidiagonal(matrix: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the squares of the diagonal, and of what is beside it, of bidiagonal matrices with the same values.

    Args:
        matrix: Shape (p, q, B), p <= q; overwritten.
    """
    diagonal, beside = [], []
    for k in range(len(matrix)):
        diagonal.append(_reflected(matrix[k, k:], matrix[k + 1 :, k:]))
        if k + 1 < len(matrix):
            beside.append(_reflected(matrix[k + 1 :, k], matrix[k + 1 :, k + 1 :].transpose(0, 1)))
    return diagonal, beside


def _reflected(vector: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Reflect vectors onto their first axis and others with them, in place; return the squared length.

    Args:
        vector: Shape (s, B); overwritten.
        others: Shape (r, s, B).

    Source:
        Householder 1958.
    """
    square = (vector * vector).sum(0)
    if len(vector) > 1 and len(others):
        norm = square.sqrt()
        first = torch.copysign(norm, vector[0]).add_(vector[0])
        vector[0] = first
        # Term by term: all products at once would leave a core's cache and come back for the sum.
        along = others[:, 0] * first
        for term, own in zip(others.unbind(1)[1:], vector[1:], strict=True):
            along.addcmul_(term, own)
        along.div_(norm.mul_(first.abs()))
        others.addcmul_(along.unsqueeze(1), vector, value=-1.0)
    return square


def _eigenvalues(q: list[torch.Tensor], e: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues of B B^T in descending order, (n, B), and where each is right to rounding of its own size.

    The differential quotient-difference algorithm: a shift by no more than the least eigenvalue leaves all elements
    positive, so that nothing cancels, and makes the last one small. The last two eigenvalues have a closed form.

    Args:
        q: Squares of the diagonal of B, n of shape (B,).
        e: Squares of what is beside it, n - 1.

    Source:
        Fernando and Parlett 1994, Accurate singular values and differential qd algorithms: dqds.
    """
    size, zero = len(q), torch.zeros_like(q[0])
    # The sum of shifts, then q, 1 / q and e in turn, e with what is beside an element already taken off.
    turns = zip(q, (one.reciprocal() for one in q), [*e, zero], strict=True)
    table = torch.stack([zero, *(row for turn in turns for row in turn)])
    certain, found, shift = torch.ones_like(zero, dtype=torch.bool), [], None
    for rest in range(size, 2, -1):
        held = table[: 3 * rest + 1]
        shift, done = _taken_off(held, shift, STEPS)
        left = (~done).nonzero().squeeze(-1)
        if len(left):
            part = held[:, left]
            shift[left], done[left] = _taken_off(part, None, MORE_STEPS)
            held[:, left] = part
        certain &= done
        found.append(held[0] + held[-3])
    found += [table[0] + value for value in _pair(table[1::3], table[3::3])]
    values = torch.stack(found[::-1])
    mixed = (values[1:] > values[:-1]).any(0).nonzero().squeeze(-1)
    if len(mixed):
        values[:, mixed] = values[:, mixed].sort(0, descending=True).values
    return values, certain


def _taken_off(table: torch.Tensor, shift: torch.Tensor | None, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make so many steps; return the shift without the last element, and where that may go.

    Without it there is the matrix A of those before it, to whose last q then belongs what is beside it. What is
    neglected is the element b off the diagonal, which moves no eigenvalue by more than b, nor than b^2 over the
    distance of the element from the eigenvalues of A.

    Args:
        table: As above, of the elements not yet taken off, shape (3 n + 1, B); overwritten.
        shift: Of the first step, if known.
        steps: How many.

    Source:
        Li and Li 2005, A note on eigenvalues of perturbed Hermitian matrices.
    """
    shifted, *rows = table.unbind()
    q, inverse, e = rows[::3], rows[1::3], rows[2::3]
    for _ in range(steps):
        shift = _shift(inverse, e)[0] if shift is None else shift
        shifted += shift
        left = q[0] - shift
        less = shift.neg_()
        for k in range(len(q) - 1):
            torch.add(left, e[k], out=q[k])
            torch.reciprocal(q[k], out=inverse[k])
            ratio = q[k + 1] * inverse[k]
            e[k].mul_(ratio)
            left = torch.addcmul(less, left, ratio)
        torch.add(left, e[-1], out=q[-1])
        torch.reciprocal(q[-1], out=inverse[-1])
        e[-1].zero_()
        shift = None
    shift, trace = _shift(inverse[:-1], e[:-1])
    lost = EPS * (shifted + q[-1])
    # The least eigenvalue of A is at least the inverse of the trace of A^-1. Written so that a NaN is not certain.
    apart = torch.maximum(trace.reciprocal_().sub_(q[-1]), lost)
    return shift, (q[-1] >= 0.0) & (q[-1] * e[-2] <= lost.mul_(apart))


def _shift(inverse: Sequence[torch.Tensor], e: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lower bounds on the least eigenvalues of B B^T, near which they converge cubically, and the trace.

    From the traces of its inverse and of the inverse's square, sums of positive numbers. Zero where an element of q is.

    Args:
        inverse: 1 / q, n of shape (B,).
        e: n - 1 of shape (B,), and others.

    Source:
        Laguerre's bound for polynomials whose roots are real: Wilkinson 1965, The algebraic eigenvalue problem,
        chapter 7. Columns of B^-1 follow from one another: (e_j - b c) / a, c the one before.
    """
    size = len(inverse)
    # Of a column of (B B^T)^-1 the diagonal element, and the squares of it and those above it; their sums so far.
    own = inverse[0]
    column, trace, squares = own.square(), own.clone(), own.square()
    for one, beside in zip(inverse[1:], e, strict=False):
        ratio = one * beside
        above = column.mul_(ratio)
        own = torch.addcmul(one, own, ratio)
        column = torch.addcmul(above, own, own)
        trace += own
        # What is above the diagonal is below it as well.
        squares.add_(above).add_(column)
    spread = squares.mul_(size * (1.0 + SPARE * EPS)).addcmul_(trace, trace, value=-1.0).clamp_(min=0.0)
    most = spread.mul_(size - 1).sqrt_().add_(trace)
    return most.reciprocal_().mul_(size * (1.0 - SPARE * EPS)).nan_to_num_(nan=0.0), trace


def _pair(q: torch.Tensor, e: torch.Tensor) -> list[torch.Tensor]:
    """Return the eigenvalues of B B^T of a bidiagonal B of two rows or one, in ascending order.

    Args:
        q: Squares of the diagonal, shape (n, B).
        e: Of what is beside it, shape (n, B): the last adds to the last element of B B^T.
    """
    if len(q) == 1:
        return [q[0]]
    first, last = q[0] + e[0], q[1] + e[1]
    root = (first - last).square_().addcmul_(q[1], e[0], value=4.0).sqrt_()
    largest = (first + last).add_(root).mul_(0.5)
    # Their product is a sum of positive numbers; a difference would cancel.
    return [(q[0] * last).addcmul_(e[0], e[1]).div_(largest), largest]
