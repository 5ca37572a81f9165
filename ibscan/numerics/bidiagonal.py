"""Singular values of many tiny matrices at once: a library's call for each costs more than its work.

Every step is one operation on long rows, an element of all matrices at a time; no matrix waits for those beside it.
Nothing is squared before the matrix is bidiagonal: the squares of a bidiagonal matrix's elements hold its singular
values to full relative precision, as the elements of a Gram matrix do not.
"""

from __future__ import annotations

import torch

__all__ = ["stacked_values"]

EPS = torch.finfo(torch.float64).eps
# Steps for each singular value, and then such without a shift, at a third of the cost: once the last element is small
# either kind makes what is beside it smaller by as much. What has not converged after them is left to the library.
STEPS, PLAIN_STEPS = 4, 2
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
    return torch.stack(squares).sqrt_().view(-1, *lead).movedim(0, -1), certain.view(lead)


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
        along = (others * vector).sum(1).div_(norm.mul_(first.abs()))
        others.addcmul_(along.unsqueeze(1), vector, value=-1.0)
    return square


def _eigenvalues(q: list[torch.Tensor], e: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the eigenvalues of B B^T in descending order, and where each is right to rounding of its own size.

    The differential quotient-difference algorithm: a shift by no more than the least eigenvalue leaves all elements
    positive, so that nothing cancels, and makes the last one small. The last two eigenvalues have a closed form.

    Args:
        q: Squares of the diagonal of B, n of shape (B,).
        e: Squares of what is beside it, n - 1.

    Source:
        Fernando and Parlett 1994, Accurate singular values and differential qd algorithms: dqds.
    """
    shifted, found = torch.zeros_like(q[0]), []
    certain = torch.ones_like(shifted, dtype=torch.bool)
    while len(q) > 2:
        inverse = [x.reciprocal() for x in q]
        for step in range(STEPS + PLAIN_STEPS):
            # Where an element is zero there is no shift either.
            shift = _shift(inverse, e).nan_to_num_(nan=0.0) if step < STEPS else torch.zeros_like(shifted)
            shifted += shift
            rest = q[0] - shift
            less = shift.neg_()
            for k, beside in enumerate(e):
                q[k] = rest + beside
                inverse[k] = q[k].reciprocal()
                ratio = q[k + 1] * inverse[k]
                e[k] = beside * ratio
                rest = torch.addcmul(less, rest, ratio)
            q[-1], inverse[-1] = rest, rest.reciprocal()
        last, beside = q.pop(), e.pop()
        # What is neglected of B B^T, on and off its diagonal: by Weyl's inequality no eigenvalue moves by more.
        lost = EPS * shifted
        certain &= (last >= 0.0) & (beside <= lost) & (last * beside <= lost.square_())
        found.append(shifted + last)
    found += [shifted + value for value in _pair(q, e)]
    # By comparing neighbours: they are nearly in order.
    for end in range(len(found) - 1, 0, -1):
        for k in range(end):
            found[k], found[k + 1] = torch.minimum(found[k], found[k + 1]), torch.maximum(found[k], found[k + 1])
    return found[::-1], certain


def _shift(inverse: list[torch.Tensor], e: list[torch.Tensor]) -> torch.Tensor:
    """Return lower bounds on the least eigenvalues of B B^T, near which they converge cubically.

    From the traces of its inverse and of the inverse's square, sums of positive numbers. NaN where an element of q is
    zero.

    Args:
        inverse: 1 / q, n of shape (B,).
        e: n - 1 of shape (B,).

    Source:
        Laguerre's bound for polynomials whose roots are real: Wilkinson 1965, The algebraic eigenvalue problem,
        chapter 7. Columns of B^-1 follow from one another: (e_j - b c) / a, c the one before.
    """
    size = len(inverse)
    # Of a column of (B B^T)^-1 the diagonal element, and the squares of it and those above it; their sums so far.
    own = inverse[0]
    column, trace, squares = own.square(), own.clone(), own.square()
    for one, beside in zip(inverse[1:], e, strict=True):
        ratio = one * beside
        above = column.mul_(ratio)
        own = torch.addcmul(one, own, ratio)
        column = torch.addcmul(above, own, own)
        trace += own
        # What is above the diagonal is below it as well.
        squares.add_(above).add_(column)
    spread = squares.mul_(size * (1.0 + SPARE * EPS)).addcmul_(trace, trace, value=-1.0).clamp_(min=0.0)
    return trace.add_(spread.mul_(size - 1).sqrt_()).reciprocal_().mul_(size * (1.0 - SPARE * EPS))


def _pair(q: list[torch.Tensor], e: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the eigenvalues of B B^T of a bidiagonal B of two rows or one, in ascending order."""
    if len(q) == 1:
        return q
    first, last = q
    root = (first - last + e[0]).square_().addcmul_(last, e[0], value=4.0).sqrt_()
    largest = (first + last + e[0]).add_(root).mul_(0.5)
    # Their product is that of the diagonal's squares; a difference would cancel.
    return [first * last / largest, largest]
