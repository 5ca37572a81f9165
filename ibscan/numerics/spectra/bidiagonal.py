"""Singular values of many tiny matrices at once, where a LAPACK call for each costs more than its work.

Every step is one operation on the same element of all matrices. Nothing is squared before the matrices are bidiagonal:
the squared elements of a bidiagonal matrix determine its singular values to full relative precision, those of a Gram
matrix do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["stacked_values"]

EPS = torch.finfo(torch.float64).eps
# Steps for each singular value of all matrices, then of those that need more. What has not converged is uncertain.
STEPS, MORE_STEPS = 3, 2
# Squared singular values beyond these are uncertain: their own squares leave the range of float64.
LEAST, MOST = 1e-140, 1e140
# Roundings by which a lower bound may be too large.
SPARE = 64


def stacked_values(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return singular values, and for which matrices they are as accurate as a backward stable SVD's.

    Args:
        matrix: Shape (..., D, k), float64, finite.

    Returns:
        Values in descending order, shape (..., min(D, k)), and `certain`, shape (...), bool. Others may be wrong.

    Source:
        Golub and Kahan 1965 for the bidiagonal form; Fernando and Parlett 1994 for its singular values.
    """
    lead = matrix.shape[:-2]
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    # A copy to work in, with the matrices along the last axis.
    work = wide.movedim((-2, -1), (0, 1)).clone(memory_format=torch.contiguous_format)
    diagonal, superdiagonal = _bidiagonal(work.flatten(2))
    squares, certain = _eigenvalues(diagonal, superdiagonal)
    # Written so that a NaN is not certain.
    certain &= (squares[-1] > LEAST) & (squares[0] < MOST)
    return squares.sqrt_().view(-1, *lead).movedim(0, -1), certain.view(lead)


def _bidiagonal(matrix: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the squared diagonal and superdiagonal of bidiagonal matrices with the same singular values.

    Args:
        matrix: Shape (p, q, matrices), p <= q; overwritten.
    """
    diagonal, superdiagonal = [], []
    for k in range(len(matrix)):
        diagonal.append(_reflected(matrix[k, k:], matrix[k + 1 :, k:]))
        if k + 1 < len(matrix):
            superdiagonal.append(_reflected(matrix[k + 1 :, k], matrix[k + 1 :, k + 1 :].transpose(0, 1)))
    return diagonal, superdiagonal


def _reflected(vector: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Apply to `others` the reflections that map `vector` onto its first axis, in place; return its squared length.

    Args:
        vector: Shape (s, matrices); overwritten.
        others: Shape (r, s, matrices).

    Source:
        Householder 1958.
    """
    square = (vector * vector).sum(0)
    if len(vector) > 1 and len(others):
        norm = square.sqrt()
        first = torch.copysign(norm, vector[0]).add_(vector[0])
        vector[0] = first
        # Term by term, as all products at once would not fit a core's cache.
        along = others[:, 0] * first
        for term, own in zip(others.unbind(1)[1:], vector[1:], strict=True):
            along.addcmul_(term, own)
        along.div_(norm.mul_(first.abs()))
        others.addcmul_(along.unsqueeze(1), vector, value=-1.0)
    return square


def _eigenvalues(q: list[torch.Tensor], e: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues of B B^T in descending order, (n, matrices), and which matrices' are accurate.

    The differential quotient-difference algorithm: a shift by no more than the least eigenvalue leaves all elements
    positive, so that nothing cancels, and makes the last one small. The last two eigenvalues have a closed form.

    Args:
        q: Squared diagonal of B, n of shape (matrices,).
        e: Squared superdiagonal, n - 1.

    Source:
        Fernando and Parlett 1994, Accurate singular values and differential qd algorithms: dqds.
    """
    size, zero = len(q), torch.zeros_like(q[0])
    # Rows: the sum of shifts, then q, 1 / q and e in turn; the last e couples to an element already split off.
    turns = zip(q, (one.reciprocal() for one in q), [*e, zero], strict=True)
    table = torch.stack([zero, *(row for turn in turns for row in turn)])
    certain, found, shift = torch.ones_like(zero, dtype=torch.bool), [], None
    for rest in range(size, 2, -1):
        active = table[: 3 * rest + 1]
        shift, done = _split_off_last(active, shift, STEPS)
        slow = (~done).nonzero().squeeze(-1)
        if len(slow):
            part = active[:, slow]
            shift[slow], done[slow] = _split_off_last(part, None, MORE_STEPS)
            active[:, slow] = part
        certain &= done
        found.append(active[0] + active[-3])
    found += [table[0] + value for value in _pair(table[1::3], table[3::3])]
    values = torch.stack(found[::-1])
    unsorted = (values[1:] > values[:-1]).any(0).nonzero().squeeze(-1)
    if len(unsorted):
        values[:, unsorted] = values[:, unsorted].sort(0, descending=True).values
    return values, certain


def _split_off_last(table: torch.Tensor, shift: torch.Tensor | None, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make `steps` steps; return the shift of the matrix A without the last element, and where it may be split off.

    Splitting it off neglects the element b that couples it to A, which moves no eigenvalue by more than b, nor by more
    than b^2 over the distance of the element from the eigenvalues of A.

    Args:
        table: As in `_eigenvalues`, of the elements not yet split off, shape (3 n + 1, matrices); overwritten.
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
    distance = torch.maximum(trace.reciprocal_().sub_(q[-1]), lost)
    return shift, (q[-1] >= 0.0) & (q[-1] * e[-2] <= lost.mul_(distance))


def _shift(inverse: Sequence[torch.Tensor], e: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lower bounds on the least eigenvalues of B B^T, as shifts, and the trace of its inverse.

    They follow from the traces of the inverse and of its square, sums of positive numbers, and make the steps converge
    cubically. They are zero where an element of q is.

    Args:
        inverse: 1 / q, n of shape (matrices,).
        e: Squared superdiagonal, n - 1 or more of shape (matrices,).

    Source:
        Laguerre's bound for polynomials whose roots are real: Wilkinson 1965, The algebraic eigenvalue problem,
        chapter 7. Columns of B^-1 follow from one another: (e_j - b c) / a, c the one before.
    """
    size = len(inverse)
    # For each column of (B B^T)^-1: its diagonal element, the sum of squares down to it, and their sums so far.
    diagonal = inverse[0]
    column, trace, squares = diagonal.square(), diagonal.clone(), diagonal.square()
    for one, coupling in zip(inverse[1:], e, strict=False):
        ratio = one * coupling
        above = column.mul_(ratio)
        diagonal = torch.addcmul(one, diagonal, ratio)
        column = torch.addcmul(above, diagonal, diagonal)
        trace += diagonal
        # The matrix is symmetric: elements above the diagonal count twice.
        squares.add_(above).add_(column)
    spread = squares.mul_(size * (1.0 + SPARE * EPS)).addcmul_(trace, trace, value=-1.0).clamp_(min=0.0)
    most = spread.mul_(size - 1).sqrt_().add_(trace)
    return most.reciprocal_().mul_(size * (1.0 - SPARE * EPS)).nan_to_num_(nan=0.0), trace


def _pair(q: torch.Tensor, e: torch.Tensor) -> list[torch.Tensor]:
    """Return the eigenvalues of B B^T, in ascending order, for a bidiagonal B of two rows or one.

    Args:
        q: Squared diagonal, shape (n, matrices).
        e: Squared superdiagonal, shape (n, matrices); the last adds to the last element of B B^T.
    """
    if len(q) == 1:
        return [q[0]]
    first, last = q[0] + e[0], q[1] + e[1]
    root = (first - last).square_().addcmul_(q[1], e[0], value=4.0).sqrt_()
    largest = (first + last).add_(root).mul_(0.5)
    # From the product of both, a sum of positive numbers: a difference would cancel.
    return [(q[0] * last).addcmul_(e[0], e[1]).div_(largest), largest]
