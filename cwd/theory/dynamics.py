"""The optimizers' continuous-time dynamics with cautious weight decay  (CWD paper, Table 1).

Where the product y that the mask looks at crosses zero, the right-hand side jumps: the dynamics is a differential
inclusion, and on the surface y = 0 a coordinate may slide, with any selection s in [0, 1] for the indicator
(Filippov). Here the selection is explicit. Outside a thin layer at the surface s is the paper's indicator, 0 or 1;
across the layer s rises smoothly from 0 to 1, so that a sliding coordinate settles where s holds it on the surface, to
within the layer, and a crossing one crosses. As the layer's width goes to 0 the paths go to solutions of the inclusion.
What remains is a differential equation with a twice differentiable right-hand side, for which an integrator's error
control means what it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cwd.theory.norms import norm_gradient
from cwd.theory.objectives import Array, Objective


@dataclass(frozen=True)
class Mask:
    """The selection s(y) for the indicator 1[y >= 0], and its primitive, which stands for max(y, 0).

    Attributes:
        width: of the layer; 0 < width. None: no mask, s = 1 and the primitive is y, which is plain decay.
        side: where the layer lies. "above", 0 <= y <= width: a coordinate with y = 0 may rest, s(0) = 0, and the
            Lyapunov function still never increases. "below", -width <= y <= 0: s(0) = 1, the paper's ">=", so that a
            stationary point of f still decays.
    """

    width: float | None
    side: str = "above"

    def selection(self, y: Array) -> Array:
        """s(y) in [0, 1]: 6 z^5 - 15 z^4 + 10 z^3 with z from 0 to 1 across the layer."""
        if self.width is None:
            return np.ones_like(y)
        z = self._depth(y)
        return z * z * z * (z * (6 * z - 15) + 10)

    def primitive(self, y: Array) -> Array:
        """The integral of s: at most width / 2 below max(y, 0) if the layer is above, as much above it if below."""
        if self.width is None:
            return y
        z, shift = self._depth(y), 0.0 if self.side == "above" else self.width
        inside = self.width * z**4 * (z * (z - 3) + 2.5)
        return np.where(z < 1, inside, y + shift - self.width / 2)

    def _depth(self, y: Array) -> Array:
        assert self.width is not None
        z = y / self.width + (self.side == "below")
        return np.minimum(np.maximum(z, 0.0), 1.0)  # np.clip is slow on small arrays


class Point(NamedTuple):
    """A state and what follows from it, or many: arrays of shape (..., d); m and v are zero where there are none.

    x' = -u - lambda * s * x, with s the mask's selection at y.
    """

    t: float | Array  # (..., 1)
    x: Array
    m: Array
    v: Array
    g: Array
    u: Array
    y: Array
    s: Array


@dataclass(frozen=True)
class Dynamics:
    """An optimizer's flow on an objective: the base of the four rows of Table 1. A state is an array (buffers, d)."""

    objective: Objective
    weight_decay: float
    mask: Mask

    buffers = 1
    begins = 0.0  # the time of the first state

    def start(self, x: Array, m: Array | None = None) -> Array:
        """The first state (buffers, d), from x and, where the optimizer has it, the momentum m (zero if not given)."""
        return np.stack([x, np.zeros_like(x) if m is None else m][: self.buffers])

    def point(self, t: float | Array, state: Array) -> Point:
        """Everything at a state (buffers, d), or at many (..., buffers, d) with their times (..., 1)."""
        x = state[..., 0, :]
        m = state[..., 1, :] if self.buffers > 1 else np.zeros_like(x)
        v = state[..., 2, :] if self.buffers > 2 else np.zeros_like(x)
        g = self.objective.gradient(x)
        u = self.direction(t, m, v, g)
        y = self.product(x, m, g, u)
        return Point(t, x, m, v, g, u, y, self.mask.selection(y))

    def velocity(self, p: Point) -> Array:
        """d(state)/dt of one state, its rows end to end: (buffers * d,)."""
        return np.concatenate([-p.u - self.weight_decay * p.s * p.x, *self.memory(p)])

    def direction(self, t: float | Array, m: Array, v: Array, g: Array) -> Array:
        """u, without decay."""
        raise NotImplementedError

    def product(self, x: Array, m: Array, g: Array, u: Array) -> Array:
        """y, whose sign the mask reads; the decay acts where it is not negative."""
        return m * x

    def memory(self, p: Point) -> list[Array]:
        """m' and v', as far as the optimizer has them."""
        return []


@dataclass(frozen=True)
class SGD(Dynamics):
    """x' = -grad f - lambda * 1[grad f * x >= 0] * x."""

    def direction(self, t: float | Array, m: Array, v: Array, g: Array) -> Array:
        """grad f."""
        return g

    def product(self, x: Array, m: Array, g: Array, u: Array) -> Array:
        """grad f * x."""
        return g * x


@dataclass(frozen=True)
class SGDM(Dynamics):
    """x' = -m - lambda * 1[m * x >= 0] * x;  m' = beta * (grad f - m)."""

    beta: float = 1.0

    buffers = 2

    def direction(self, t: float | Array, m: Array, v: Array, g: Array) -> Array:
        """m."""
        return m

    def memory(self, p: Point) -> list[Array]:
        """m'."""
        return [self.beta * (p.g - p.m)]


@dataclass(frozen=True)
class LionK(Dynamics):
    """x' = grad K(m) - lambda * 1[m * x <= 0] * x;  m' = -alpha * grad f - gamma * m.

    Attributes:
        norm: "l1" (Lion) or "nuclear" (Muon), smoothed: see :mod:`cwd.theory.norms`.
        smoothing: delta of the smoothing.
        reads: what the mask reads: "m" as in Table 1, or "direction", grad K(m), as in Algorithms 3 and 5. For l1 they
            have the same signs.
    """

    alpha: float = 1.0
    gamma: float = 1.0
    norm: str = "l1"
    smoothing: float = 1e-3
    reads: str = "m"

    buffers = 2

    def direction(self, t: float | Array, m: Array, v: Array, g: Array) -> Array:
        """-grad K(m)."""
        return -norm_gradient(self.norm, m, self.objective.shape, self.smoothing)

    def product(self, x: Array, m: Array, g: Array, u: Array) -> Array:
        """-m * x, or -grad K(m) * x."""
        return -m * x if self.reads == "m" else u * x

    def memory(self, p: Point) -> list[Array]:
        """m'."""
        return [-self.alpha * p.g - self.gamma * p.m]


@dataclass(frozen=True)
class Adam(Dynamics):
    """x' = -a * m / h - lambda * 1[m * x >= 0] * x;  m' = alpha * (grad f - m);  v' = gamma * ((grad f)^2 - v).

    a = 1 / (1 - exp(-alpha * t)), c = 1 / (1 - exp(-gamma * t)), h = sqrt(c * v) + eps. The first state is that of a
    constant gradient from time 0 on: m = grad f / a, v = (grad f)^2 / c (at least 1e-12, as sqrt is steep at 0).
    """

    alpha: float = 1.0
    gamma: float = 0.1
    eps: float = 1e-2
    begins: float = 0.05

    buffers = 3

    def start(self, x: Array, m: Array | None = None) -> Array:
        """The first state, at time `begins`."""
        (a, c), g = self.corrections(self.begins), self.objective.gradient(x)
        return np.stack([x, g / a if m is None else m, np.maximum(g * g / c, 1e-12)])

    def corrections(self, t: float | Array) -> tuple[Any, Any]:
        """a and c, of t's shape."""
        return -1 / np.expm1(-self.alpha * t), -1 / np.expm1(-self.gamma * t)

    def direction(self, t: float | Array, m: Array, v: Array, g: Array) -> Array:
        """a * m / h."""
        a, c = self.corrections(t)
        return a * m / (np.sqrt(c * v) + self.eps)

    def memory(self, p: Point) -> list[Array]:
        """m' and v'."""
        return [self.alpha * (p.g - p.m), self.gamma * (p.g * p.g - p.v)]
