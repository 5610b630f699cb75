"""The optimizer Muon, with orthogonalised steps of the hidden matrices of transformers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

#: the quintic polynomials of five Newton-Schulz iterations, from github.com/KellerJordan/modded-nanogpt
_POLYNOMIALS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
_MOMENTUM = 0.95
#: step size over the square root of the longer side; 0.2 matches AdamW, twice that converged faster in few epochs
_SIZE = 0.4


class Muon(AdamW):
    """AdamW, with orthogonalised momentum steps (Muon) for parameter groups marked `orthogonal`.

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with steps proportional to sqrt(max(rows, columns)), so that
    both kinds of groups have the same learning rate (Liu et al. 2025, arXiv 2502.16982). The implementations of torch
    and timm iterate in bfloat16, which is slow on most CPUs.

    Args:
        params: Parameter groups. All parameters of a group marked `orthogonal: True` are matrices.
        settings: See `torch.optim.AdamW`.
    """

    def __init__(self, params: Iterable[dict[str, Any]], **settings: Any) -> None:
        super().__init__([{"orthogonal": False, **group} for group in params], **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, and return the loss of the closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                self._step_matrices(group)
        super().step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
        if not matrices:
            return
        gradients = [matrix.grad for matrix in matrices]
        for matrix in matrices:
            state = self.state[matrix]
            if not state:  # AdamW asks every state for its step when it loads one
                state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(matrix)
            state["step"] += 1
            matrix.grad = None  # AdamW has nothing left to do with it
        averages = [self.state[matrix]["exp_avg"] for matrix in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - _MOMENTUM)
        directions = torch._foreach_lerp(gradients, averages, _MOMENTUM)  # Nesterov's
        # a GPU is bound by the number of calls, while a CPU holds single matrices in its cache
        changes = orthogonal(directions, together=matrices[0].is_cuda)
        torch._foreach_mul_(changes, [-group["lr"] * _SIZE * max(matrix.shape) ** 0.5 for matrix in matrices])
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, changes)


def orthogonal(matrices: Sequence[Tensor], together: bool = False) -> list[Tensor]:
    """Return approximations of U V^T for matrices U S V^T by Newton-Schulz iterations.

    Args:
        matrices: Matrices, shape (M, N) each.
        together: Whether matrices of one shape are one batch of matrix products, in a fraction of the calls.
    """
    if not together:
        return [_iterated(matrix) for matrix in matrices]
    batches: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        batches.setdefault(matrix.shape, []).append(index)
    results = list(matrices)
    for indices in batches.values():
        batch = _iterated(torch.stack([matrices[index] for index in indices])).contiguous()
        for index, result in zip(indices, batch.unbind(), strict=True):
            results[index] = result
    return results


def _iterated(x: Tensor) -> Tensor:
    """Return the result of the iterations for a matrix (M, N) or several (n, M, N), by products of the shorter side."""
    if x.shape[-2] > x.shape[-1]:
        return _iterated(x.mT).mT
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for a, b, c in _POLYNOMIALS:
        gram = x @ x.mT
        x = product(x, product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the weight matrices of the attention blocks of a module, those that `Muon` orthogonalises."""
    from timm.models.vision_transformer import Block

    blocks = [block for block in module.modules() if isinstance(block, Block)]
    return [parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2]


def parameter_groups(
    modules: Iterable[tuple[nn.Module, float]], weight_decay: float, hidden: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Return the trained parameters of modules in groups for AdamW or `Muon`.

    Args:
        modules: The modules, each with its learning rate.
        weight_decay: Weight decay, not applied to biases, norms and scalars.
        hidden: Matrices that `Muon` orthogonalises, see `hidden_matrices`.
    """
    settings = []
    orthogonalised = set(hidden)
    for module, lr in modules:
        parameters = [p for p in module.parameters() if p.requires_grad]
        for decay, orthogonal, chosen in (
            (weight_decay, True, [p for p in parameters if p in orthogonalised]),
            (weight_decay, False, [p for p in parameters if p.ndim > 1 and p not in orthogonalised]),
            (0.0, False, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                settings.append({"params": chosen, "lr": lr, "weight_decay": decay, "orthogonal": orthogonal})
    return settings
