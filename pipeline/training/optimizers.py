"""Adam and its sparse variant over named parameters, with a separate learning rate for thresholds.

Both can skip a step on the device (`skip`), so that a non-finite gradient never reaches the weights and no step waits for
the host. Neither decays weights. State is addressed by parameter name, so that a checkpoint does not depend on an order.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ParamsError, unknown_name
from pipeline.processes import ONE_PROCESS, Reductions


class StepOptimizer(abc.ABC):
    """What the step loop needs of an optimiser.

    Args:
        parameters: {name: parameter}.
        lr_factors: {name: factor of the learning rate}; 1 where a name is absent.
        betas, eps: as in Adam.

    Attributes:
        slots: {parameter's name: {"step": number of updates, "exp_avg", "exp_avg_sq": its moments}}.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr_factors: Mapping[str, float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = dict(parameters)
        self.lr_factors = {name: float((lr_factors or {}).get(name, 1.0)) for name in self.parameters}
        self.betas, self.eps = (float(betas[0]), float(betas[1])), float(eps)
        self.slots = {
            name: {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
            for name, parameter in self.parameters.items()
        }

    @abc.abstractmethod
    def step(self, lr: float | Tensor, skip: Tensor | None = None) -> None:
        """Update every parameter that has a gradient.

        Args:
            lr: learning rate, times the parameter's factor; a float32 scalar on the device where a graph is to read it.
            skip: float32 scalar on the device, 1 to change nothing at all, 0 to update; None: update.
        """

    def state(self) -> dict[str, Tensor]:
        """{`<parameter>/<slot>`: tensor} of all that a resume needs."""
        return {f"{name}/{slot}": tensor for name, slots in self.slots.items() for slot, tensor in slots.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` gave.

        Raises:
            CheckpointError: names or shapes do not fit.
        """
        own = self.state()
        if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in state.items()}:
            raise CheckpointError("the optimiser's state does not fit the dictionary's parameters")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None


class Adam(StepOptimizer):
    """Adam (Kingma and Ba 2015): w <- w - lr m_hat / (sqrt(v_hat) + eps).

    Calls the fused kernel behind torch.optim.Adam(fused=True) directly: the class around it imports torch._dynamo, which
    takes a second and a half at the start of every run.
    """

    @torch.no_grad()
    def step(self, lr: float | Tensor, skip: Tensor | None = None) -> None:
        for factor in sorted(set(self.lr_factors.values())):
            chosen = {name: p for name, p in self.parameters.items() if self.lr_factors[name] == factor}
            grads = {name: p.grad for name, p in chosen.items() if p.grad is not None}
            if not grads:
                continue
            steps = [self.slots[name]["step"] for name in grads]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                [_as_in_memory(self.parameters[name], self.parameters[name]) for name in grads],
                [_as_in_memory(grad, self.parameters[name]).contiguous() for name, grad in grads.items()],
                [_as_in_memory(self.slots[name]["exp_avg"], self.parameters[name]) for name in grads],
                [_as_in_memory(self.slots[name]["exp_avg_sq"], self.parameters[name]) for name in grads],
                [],
                steps,
                lr=lr * factor,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=0.0,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
                found_inf=skip,
            )
            if skip is not None:
                torch._foreach_sub_(steps, [skip] * len(steps))


def _as_in_memory(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The tensor with its dimensions in the order that the parameter's memory has, where the parameter is contiguous."""
    if parameter.is_contiguous():
        return tensor
    return tensor.permute(sorted(range(parameter.ndim), key=parameter.stride, reverse=True))


class SparseAdam(StepOptimizer):
    """Adam whose moments decay everywhere and whose update skips entries with gradient 0 (SPEC 6).

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - lr m_hat / (sqrt(v_hat) + eps) where g != 0.
    A feature that did not fire is not moved by what its moments remember.
    """

    @torch.no_grad()
    def step(self, lr: float | Tensor, skip: Tensor | None = None) -> None:
        b1, b2 = self.betas
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            slots = self.slots[name]
            grad, factor = parameter.grad, lr * self.lr_factors[name]
            done = slots["step"] + 1
            exp_avg = torch.lerp(slots["exp_avg"], grad, 1 - b1)
            exp_avg_sq = (slots["exp_avg_sq"] * b2).addcmul_(grad, grad, value=1 - b2)
            c1, c2 = (_bias_correction(beta, done.to(grad.dtype)) for beta in (b1, b2))
            root = (exp_avg_sq.sqrt() / c2.sqrt()).add_(self.eps)
            update = (exp_avg / root).mul_(-factor / c1).mul_(grad != 0)
            new = {"step": done, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
            if skip is None:
                parameter.add_(update)
                for slot, value in new.items():
                    slots[slot].copy_(value)
                continue
            keep = skip.to(torch.bool)
            parameter.copy_(torch.where(keep, parameter, parameter + update))
            for slot, value in new.items():
                slots[slot].copy_(torch.where(keep, slots[slot], value))


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step in the step's dtype; as written the difference would lose what beta, near 1, has more digits for."""
    return -torch.expm1(step * (math.log(beta) if beta else -math.inf))


_OPTIMIZERS: dict[str, Callable[..., StepOptimizer]] = {"adam": Adam, "sparseadam": SparseAdam}


def build_optimizer(
    name: str,
    parameters: Mapping[str, nn.Parameter],
    *,
    lr_factors: Mapping[str, float] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> StepOptimizer:
    """`adam` or `sparseadam`.

    Raises:
        ParamsError: unknown name.
    """
    if name not in _OPTIMIZERS:
        raise ParamsError(f"trainer.optimizer: {unknown_name('optimiser', name, _OPTIMIZERS)}")
    return _OPTIMIZERS[name](parameters, lr_factors=lr_factors, betas=betas, eps=eps)


@torch.no_grad()
def gradient_norms(
    parameters: Mapping[str, nn.Parameter], dealt: Collection[str] = (), group: Reductions = ONE_PROCESS
) -> dict[str, Tensor]:
    """{name: L2 norm of its gradient, float32 scalar} of the parameters that have one.

    Args:
        parameters: of this process.
        dealt: names of those of which the processes of `group` have a part each.
        group: the identity where there are none.
    """
    grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    if not grads:
        return {}
    norms = dict(zip(grads, torch._foreach_norm(list(grads.values())), strict=True))
    if group.size > 1:
        parts = [name for name in norms if name in dealt]
        squares = group.sum([norms[name].square() for name in parts])
        norms |= {name: square.sqrt() for name, square in zip(parts, squares, strict=True)}
    return {name: norm.float() for name, norm in norms.items()}


def global_norm(norms: Mapping[str, Tensor], excluded: frozenset[str] = frozenset()) -> Tensor:
    """L2 norm of all gradients together, float32 scalar, of those of each; `excluded` names (thresholds) stay out."""
    counted = [norm for name, norm in norms.items() if name not in excluded]
    return torch.stack(counted).norm() if counted else torch.zeros(())


@torch.no_grad()
def clip_gradients_(
    parameters: Mapping[str, nn.Parameter], norm: Tensor, largest: float, excluded: frozenset[str] = frozenset()
) -> None:
    """Scale gradients by min(1, largest / norm); those of `excluded` parameters are left as they are."""
    factor = (largest / norm.clamp_min(1e-12)).clamp_max(1.0)
    for name, parameter in parameters.items():
        if name not in excluded and parameter.grad is not None:
            parameter.grad.mul_(factor.to(parameter.grad.dtype))


class GradientScaler:
    """Loss scaling for float16: gradients are computed from loss * scale and divided by it again.

    An overflow skips the step and halves the scale; `growth_interval` good steps double it. All on the device.
    Source: Micikevicius et al. 2018; the constants are torch.amp.GradScaler's.

    Args:
        enabled: False makes every method a no-op.
        group: over the processes that have other parts of the gradients.
    """

    def __init__(
        self,
        enabled: bool,
        device: torch.device | str,
        growth_interval: int = 2000,
        group: Reductions = ONE_PROCESS,
    ) -> None:
        self.enabled, self.growth_interval, self._group = enabled, growth_interval, group
        self.scale = torch.full((), 2.0**16 if enabled else 1.0, dtype=torch.float32, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """What to differentiate."""
        return loss * self.scale if self.enabled else loss

    @torch.no_grad()
    def unscale_(self, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
        """Divide the gradients by the scale; float32 scalar, 1 if one is not finite. None if not enabled."""
        if not self.enabled:
            return None
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        for grad in grads:
            grad.div_(self.scale.to(grad.dtype))
        finite = torch.stack([torch.isfinite(grad).all() for grad in grads]).all()
        return self._group.any(~finite).float()

    @torch.no_grad()
    def update(self, overflow: Tensor | None) -> None:
        """Adapt the scale after a step."""
        if overflow is None:
            return
        bad = overflow.to(torch.bool)
        self.good_steps.copy_(torch.where(bad, 0, self.good_steps + 1))
        grow = self.good_steps >= self.growth_interval
        self.scale.copy_(torch.where(bad, self.scale * 0.5, torch.where(grow, self.scale * 2.0, self.scale)))
        self.good_steps.masked_fill_(grow, 0)

    def state(self) -> dict[str, Tensor]:
        """What a resume needs."""
        return {"scale": self.scale, "good_steps": self.good_steps} if self.enabled else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        if set(state) != set(self.state()):
            raise CheckpointError("the gradient scaler's state does not fit trainer.amp_dtype")
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
