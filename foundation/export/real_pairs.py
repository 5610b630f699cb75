"""Complex tensors as pairs of real tensors, for runtimes without complex numbers such as ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any


class Pair(Tensor):
    """A tensor of complex dtype and shape (...) whose values are stored as real and imaginary parts (..., 2).

    It has no storage of its own: under `RealPairs` operations on it are computed on `parts`.

    Attributes:
        parts: Real and imaginary parts, shape (..., 2).
    """

    parts: Tensor

    @staticmethod
    def __new__(cls: type[Pair], parts: Tensor) -> Pair:
        """Build a pair from real and imaginary parts (..., 2)."""
        made: Pair = torch.Tensor._make_wrapper_subclass(
            cls, parts.shape[:-1], dtype=torch.complex64, device=parts.device
        )
        made.parts = parts
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse operations that `RealPairs` does not implement."""
        raise NotImplementedError(f"{func} of complex numbers")


class RealPairs(TorchFunctionMode):
    """Runs code written for complex tensors on pairs of real tensors, so that its trace has no complex numbers.

    DFTs are computed as products with constant matrices.

    Raises:
        NotImplementedError: The code uses a complex operation that is not implemented here.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one function."""
        kwargs = kwargs or {}
        if func is torch.view_as_complex:
            return Pair(args[0])
        if not tree_any(lambda value: isinstance(value, Pair), (args, kwargs)):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(func.__self__, "__name__", "")  # type: ignore[attr-defined]
        if name in _METADATA:
            return func(*args, **kwargs)
        rule = _RULES.get(name.strip("_"))
        if rule is None:
            raise NotImplementedError(f"{name} of complex numbers")
        return rule(*args, **kwargs)


_METADATA = (
    "shape", "ndim", "dtype", "device", "dim", "size", "numel", "is_complex", "is_floating_point", "__len__", "layout",
    "requires_grad", "is_nested", "is_sparse", "is_quantized", "is_meta",
)  # fmt: skip


def _axis(value: Pair, dim: int) -> int:
    """Return an axis counted from the front; `parts` has one more axis at the end."""
    return dim % value.ndim


def _split(value: Any) -> tuple[Any, Any]:
    """Return the real and imaginary parts of a pair or of a real value."""
    return (value.parts[..., 0], value.parts[..., 1]) if isinstance(value, Pair) else (value, None)


def _join(real: Tensor, imaginary: Tensor) -> Pair:
    return Pair(torch.stack([real, imaginary], -1))


def _times(one: Any, other: Any) -> Pair:
    if not isinstance(one, Pair):
        one, other = other, one
    if not isinstance(other, Pair):
        return Pair(one.parts * (other.unsqueeze(-1) if isinstance(other, Tensor) else other))
    (a, b), (c, d) = _split(one), _split(other)
    return _join(a * c - b * d, a * d + b * c)


def _divide(one: Any, other: Any) -> Pair:
    if not isinstance(other, Pair):
        return Pair(one.parts / (other.unsqueeze(-1) if isinstance(other, Tensor) else other))
    c, d = _split(other)
    # scaled by the larger part first: squares of weak channels underflow single precision
    size = torch.maximum(c.abs(), d.abs())
    size = torch.where(size > 0, size, torch.ones_like(size))
    c, d = c / size, d / size
    power = (c.square() + d.square()) * size
    return _times(one, _join(c / power, -d / power))


def _matmul(one: Any, other: Any) -> Pair:
    (a, b), (c, d) = _split(one), _split(other)
    if b is None:
        return _join(a @ c, a @ d)
    if d is None:
        return _join(a @ c, b @ c)
    return _join(a @ c - b @ d, a @ d + b @ c)


def _einsum(equation: str, one: Pair, other: Pair) -> Pair:
    (a, b), (c, d) = _split(one), _split(other)
    real = torch.einsum(equation, a, c) - torch.einsum(equation, b, d)
    return _join(real, torch.einsum(equation, a, d) + torch.einsum(equation, b, c))


def _magnitude(value: Pair) -> Tensor:
    return value.parts.square().sum(-1).sqrt()


def _where(condition: Tensor, one: Any, other: Any) -> Pair:
    return Pair(torch.where(condition.unsqueeze(-1), one.parts, other.parts))


def _reshape(value: Pair, *shape: Any) -> Pair:
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int | torch.SymInt) else shape
    return Pair(value.parts.reshape(*sizes, 2))


def _permute(value: Pair, *dims: Any) -> Pair:
    order = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return Pair(value.parts.permute(*(_axis(value, d) for d in order), value.ndim))


def _getitem(value: Pair, index: Any) -> Pair:
    index = index if isinstance(index, tuple) else (index,)
    return Pair(value.parts[(*index, slice(None)) if Ellipsis in index else (*index, Ellipsis, slice(None))])


def _gather(value: Pair, dim: int, index: Tensor) -> Pair:
    parts = [part.gather(dim, index) for part in _split(value)]
    return _join(*parts)


def _flatten(value: Pair, start_dim: int = 0, end_dim: int = -1) -> Pair:
    return Pair(value.parts.flatten(_axis(value, start_dim), _axis(value, end_dim)))


def _mean(value: Pair, dim: int) -> Pair:
    return Pair(value.parts.mean(_axis(value, dim)))


def _vector_norm(value: Pair, dim: Any = None) -> Tensor:
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    squares = value.parts.square().sum(-1)
    return squares.sum([_axis(value, d) for d in dims]).sqrt()


def _ones_like(value: Pair) -> Pair:
    one = torch.ones_like(value.parts[..., 0])
    return _join(one, torch.zeros_like(one))


def _dft(value: Pair, dim: int, norm: str | None, sign: float) -> Pair:
    if norm != "ortho":
        raise NotImplementedError("a DFT that is not unitary, of complex numbers")
    size = int(value.shape[dim])
    turn = torch.arange(size, dtype=torch.float64)
    angle = sign * 2 * math.pi / size * torch.outer(turn, turn).remainder(size)
    cosine, sine = (part.div(math.sqrt(size)).to(value.parts) for part in (angle.cos(), angle.sin()))
    (a, b), axis = (part.movedim(dim, -1) for part in _split(value)), dim
    return _join((a @ cosine - b @ sine).movedim(-1, axis), (a @ sine + b @ cosine).movedim(-1, axis))


def _fft(value: Pair, n: None = None, dim: int = -1, norm: str | None = None) -> Pair:
    return _dft(value, dim, norm, -1.0)


def _ifft(value: Pair, n: None = None, dim: int = -1, norm: str | None = None) -> Pair:
    return _dft(value, dim, norm, 1.0)


#: complex operations used by transforms, encoders and heads, by function name
_RULES: dict[str, Callable[..., Any]] = {
    "view_as_real": lambda value: value.parts,
    "real": lambda value: value.parts[..., 0],
    "imag": lambda value: value.parts[..., 1],
    "abs": _magnitude,
    "conj": lambda value: _join(value.parts[..., 0], -value.parts[..., 1]),
    "mul": _times,
    "rmul": _times,
    "truediv": _divide,
    "div": _divide,
    "matmul": _matmul,
    "einsum": _einsum,
    "mT": lambda value: Pair(value.parts.transpose(-2, -3)),
    "where": _where,
    "reshape": _reshape,
    "permute": _permute,
    "transpose": lambda value, a, b: Pair(value.parts.transpose(_axis(value, a), _axis(value, b))),
    "getitem": _getitem,
    "gather": _gather,
    "flatten": _flatten,
    "squeeze": lambda value, dim: Pair(value.parts.squeeze(_axis(value, dim))),
    "unsqueeze": lambda value, dim: Pair(value.parts.unsqueeze(dim % (value.ndim + 1))),
    "mean": _mean,
    "linalg_vector_norm": _vector_norm,
    "ones_like": _ones_like,
    "contiguous": lambda value: value,
    "to": lambda value, other: value,
    "fft_fft": _fft,
    "fft_ifft": _ifft,
}
