"""Tiles of a product in the precision that is fastest on the device, with a proven bound on their error.

A bfloat16 product of unit rows runs several times as fast as a float32 one, with an error of about 1e-3. That does not
matter to a search that only asks which pairs *may* reach a bound: with x' and y' the rounded rows,

    |x'.y' - x.y|  <=  |x' - x| |y'| + |x| |y' - y|  +  D u |x'| |y'|

by Cauchy-Schwarz and the bound for any order of summation [1]_. The rounding errors |x' - x| and |y' - y| are measured,
not estimated; sums are kept in float32 (u = 2^-24, doubled for hardware that truncates instead of rounding). The sum is
then rounded to the low precision, which preserves order: it is compared with a bound that was rounded down. No pair
that reaches the bound is lost; the proposed pairs are scored exactly afterwards.

References
----------
.. [1] Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1.
"""

import functools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from clapcur.methods.similarity.rows import NORM_TOLERANCE

PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)
GROUPS = 64  # of columns, whose maxima are computed first; as many as fit in a CPU's registers
DENSE = 8  # if more than 1/8 of the groups have hits, the whole tile is compared; ours
WORTH_MEASURING = 2**33  # multiplications in a search below which float32 is good enough; ours, about 0.1 s
MATMUL_LOCK = threading.Lock()  # torch's precision settings for products apply to the whole process


class Screen:
    """Rows of text in one precision, and products with rows of audio in the same precision.

    Parameters
    ----------
    text_MD : Tensor, shape (M, D), float32
    dtype : torch.dtype
        Precision of the products.
    offset_M : Tensor, shape (M,), float32, optional
        Subtracted from the similarities of each text; the audio rows then need offsets, too.
    """

    def __init__(self, text_MD: Tensor, dtype: torch.dtype, offset_M: Tensor | None = None) -> None:
        self.dtype, self.has_offsets = dtype, offset_M is not None
        self._largest_offset = 0.0
        self.text_MD, self._text_error = self._low(text_MD, offset_M, side=1)
        self._buffer = text_MD.new_empty(0, dtype=dtype)

    def rows(self, audio_RD: Tensor, offset_R: Tensor | None = None) -> tuple[Tensor, float]:
        """Return rows of audio in low precision, and a bound on the error of products with them."""
        low_RD, audio_error = self._low(audio_RD, offset_R, side=0)
        unit, dim = 2.0**-24, self.text_MD.shape[1]
        sums = dim * unit / (1 - dim * unit) + 2 * unit
        if self.dtype != torch.float32:
            sums *= 2
        longest = 1 + NORM_TOLERANCE + max(audio_error, self._text_error)
        size = longest**2 + 4 * self._largest_offset
        return low_RD, longest * (audio_error + self._text_error) + sums * size

    def product(self, rows_RD: Tensor, columns: slice) -> Tensor:
        """Return the product of rows and some texts, shape (R, T); the next product overwrites it."""
        text_TD = self.text_MD[columns]
        needed = len(rows_RD) * len(text_TD)
        if len(self._buffer) < needed:
            self._buffer = self._buffer.new_empty(needed)
        out_RT = self._buffer[:needed].view(len(rows_RD), len(text_TD))
        with MATMUL_LOCK, full_sums(), torch.autocast(rows_RD.device.type, enabled=False), torch.no_grad():
            return torch.mm(rows_RD, text_TD.T, out=out_RT)

    def _low(self, rows_ND: Tensor, offset_N: Tensor | None, side: int) -> tuple[Tensor, float]:
        """Return rows in low precision, and the largest norm of a row's rounding error."""
        low_ND = rows_ND.to(self.dtype)
        error = 0.0
        if self.dtype != torch.float32 and len(rows_ND):
            error = float((low_ND.float() - rows_ND).norm(dim=1).max()) * (1 + 1e-3)  # a float32 norm is itself inexact
        if not self.has_offsets:
            return low_ND, error
        assert offset_N is not None
        # x.y - a - b is the product of (x, -a, 1) and (y, 1, -b); an offset is the sum of two low-precision numbers
        high_N = offset_N.to(self.dtype)
        rest_N = (offset_N - high_N.float()).to(self.dtype)
        lost_N = offset_N.double() - high_N.double() - rest_N.double()
        own, ones = torch.stack([-high_N, -rest_N], dim=1), low_ND.new_ones((len(low_ND), 2))
        ends = [own, ones] if side == 0 else [ones, own]
        none = low_ND.new_zeros((len(low_ND), -(low_ND.shape[1] + 4) % 32))
        if len(offset_N):
            self._largest_offset = max(self._largest_offset, float(offset_N.abs().max()))
            error += float(lost_N.abs().max())
        return torch.cat([low_ND, *ends, none], dim=1), error


def reaching(product_RT: Tensor, *bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns where a product may reach float32 bounds from which error margins were subtracted.

    Hits are rare, so the maxima of groups of columns are compared first: one pass over the tile instead of a comparison
    and a search. 16-bit floats are read as integers, whose maximum a CPU finds ten times as fast: above 0, both have
    the same order.

    Parameters
    ----------
    product_RT : Tensor, shape (R, T)
    *bounds : Tensor, shape (R, 1) or (1, T)
        Bounds of the rows or of the columns; all must be reached.
    """
    low = [_rounded_down(bound, product_RT.dtype) for bound in bounds]
    if product_RT.dtype != torch.float32 and all(bool((bound > 0).all()) for bound in low):
        product_RT, low = product_RT.view(torch.int16), [bound.view(torch.int16) for bound in low]
    size = product_RT.shape[1] // GROUPS
    end = size * GROUPS
    if size > 1:
        product_RSG = product_RT[:, :end].unflatten(1, (size, GROUPS))
        grouped = [b if b.shape[1] == 1 else b[:, :end].unflatten(1, (size, GROUPS)) for b in low]
        row_H, group_H = _where(product_RSG.amax(dim=1), [b if b.ndim == 2 else b.amin(dim=1) for b in grouped])
        if DENSE * len(row_H) * size < product_RT.numel():
            own = [b[row_H] if b.ndim == 2 else b[0, :, group_H].T for b in grouped]
            hit, place = _where(product_RSG[row_H, :, group_H], own)
            row, column = _where(product_RT[:, end:], [b if b.shape[1] == 1 else b[:, end:] for b in low])
            return torch.cat([row_H[hit], row]), torch.cat([place * GROUPS + group_H[hit], column + end])
    return _where(product_RT, low)


def _where(values_RT: Tensor, bounds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the values that reach their bounds; on a CPU several times as fast as `nonzero`."""
    hit_RT = functools.reduce(Tensor.logical_and_, [values_RT >= bound for bound in bounds])
    if hit_RT.device.type != "cpu":
        row, column = hit_RT.nonzero(as_tuple=True)
        return row, column
    flat = hit_RT.numpy().reshape(-1)
    whole = len(flat) // 8 * 8
    words = np.flatnonzero(flat[:whole].view(np.uint64))  # eight at a time
    word, byte = np.nonzero(flat[:whole].reshape(-1, 8)[words])
    places = np.concatenate([8 * words[word] + byte, whole + np.flatnonzero(flat[whole:])])
    rows, columns = np.divmod(places, max(1, hit_RT.shape[1]))
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _rounded_down(bound: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest numbers in a precision that do not exceed a float32 bound."""
    if dtype == torch.float32:
        return bound
    low = bound.to(dtype)
    return torch.where(low.float() > bound, torch.nextafter(low, torch.full_like(low, -torch.inf)), low)


def fastest_precision(device: torch.device, num_products: int) -> torch.dtype:
    """Return the precision in which this device multiplies fastest; float32 if the work is too small to matter."""
    return torch.float32 if num_products < WORTH_MEASURING else _measured(str(device), torch.get_num_threads())


@functools.cache
def _measured(device: str, num_threads: int) -> torch.dtype:
    """Time one product in each precision and return the fastest; exclude those whose error exceeds the bound."""
    size, dim = (2048, 1024) if device.startswith("cpu") else (8192, 1024)
    generator = torch.Generator().manual_seed(0)
    unit_ND = torch.nn.functional.normalize(torch.randn(size, dim, generator=generator), dim=1)
    rows_ND = unit_ND.to(device)
    taken = {}
    for dtype in PRECISIONS:
        try:
            screen = Screen(rows_ND, dtype)
            low_RD, error = screen.rows(rows_ND)
            sample_RT = screen.product(low_RD, slice(0, size))[:, :256].float()  # also warms up
            exact_RT = rows_ND.double() @ rows_ND[:256].double().T
            rounding = float(torch.finfo(dtype).eps) * sample_RT.abs()  # error of rounding the result
            if bool(((sample_RT - exact_RT).abs() > error + rounding).any()):
                continue
            _wait(device)
            started = time.perf_counter()
            screen.product(low_RD, slice(0, size))
            _wait(device)
            taken[dtype] = time.perf_counter() - started
        except RuntimeError:  # not supported on this device
            continue
    return min(taken, key=taken.__getitem__, default=torch.float32)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@contextmanager
def full_sums() -> Iterator[None]:
    """Make float32 products use float32 (TF32 has an error of 1e-3) and 16-bit products be summed in float32."""
    matmul = torch.backends.cuda.matmul
    before = (
        torch.get_float32_matmul_precision(),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )
    torch.set_float32_matmul_precision("highest")
    matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.allow_bf16_reduced_precision_reduction = before[1]
        matmul.allow_fp16_reduced_precision_reduction = before[2]
