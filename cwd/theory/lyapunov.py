"""The Lyapunov functions of Table 1 and their derivatives along the dynamics  (CWD paper, Table 1 and Appendix D).

With the selection s of :class:`cwd.theory.dynamics.Mask` for the indicator and its primitive R for max(., 0), the
derivatives below hold exactly, whatever s is: that is what lets them be checked through a sliding coordinate too.

SGD     H = f
        H' = -<g, g> - lambda * <s, g x>
SGDM    H = beta f + 1/2 ||m||^2 + lambda * sum R(m x)
        H' = -<lambda s + beta, m^2> - lambda * <s (beta + lambda s), m x>
Lion-K  H = alpha f + K(m) + lambda * sum R(-m x)
        H' = -<lambda s + gamma, grad K(m) m> - lambda * <s (gamma + lambda s), -m x>
Adam    H = alpha f + sum a m^2 / (2 h) + lambda * sum R(m x)
        H' = -<lambda s + (alpha (a + 1) + h' / h) / 2, a m^2 / h> - lambda * <s (alpha + lambda s), m x>,
        h' = gamma c (g^2 - c v) / (2 sqrt(c v))

With s in {0, 1} the first three are the paper's. The last is derived here: a' = -alpha a (a - 1), c' = -gamma c (c -
1), and h' / h >= -gamma c / 2, so that the bracket is at least alpha (a + 1) / 2 - gamma c / 4, which is not negative
if gamma <= 4 alpha. With the layer above the surface s y >= 0, and none of the H' is ever positive; that of Lion-K, if
sgn(grad K(m)) = sgn(m).

Without a mask, s = 1 and R(y) = y, these are the analogous functions of Remark 1, whose last terms may have any sign.
"""

from __future__ import annotations

import numpy as np

from cwd.theory.dynamics import SGD, SGDM, Adam, Dynamics, LionK, Point
from cwd.theory.norms import norm_gap, norm_value
from cwd.theory.objectives import Array


def value(dynamics: Dynamics, p: Point, sharp: bool = False) -> Array:
    """H at a point, a number, or at many, (...).

    Args:
        sharp: the paper's own H, with max(y, 0) and the norm itself, for the mask's primitive and the smoothed norm.
    """
    f = dynamics.objective.value(p.x)
    match dynamics:
        case SGD():
            return f
        case SGDM(beta=beta):
            return beta * f + 0.5 * np.vecdot(p.m, p.m) + _decay(dynamics, p.m * p.x, sharp)
        case LionK(alpha=alpha, norm=norm):
            size = norm_value(norm, p.m, dynamics.objective.shape, 0.0 if sharp else dynamics.smoothing)
            return alpha * f + size + _decay(dynamics, -p.m * p.x, sharp)
        case Adam(alpha=alpha):
            return alpha * f + 0.5 * np.vecdot(p.u, p.m) + _decay(dynamics, p.m * p.x, sharp)
    raise TypeError(dynamics)


def rate(dynamics: Dynamics, p: Point) -> Array:
    """dH/dt at a point, a number, or at many, (...); of the H with the mask's primitive and the smoothed norm."""
    decay = dynamics.weight_decay
    match dynamics:
        case SGD():
            return -np.vecdot(p.g, p.g) - decay * np.vecdot(p.s, p.y)
        case SGDM(beta=beta):
            return -np.vecdot(decay * p.s + beta, p.m * p.m) - decay * np.vecdot(p.s * (beta + decay * p.s), p.y)
        case LionK():
            return _lion_rate(dynamics, p)
        case Adam():
            return _adam_rate(dynamics, p)
    raise TypeError(dynamics)


def _lion_rate(dynamics: LionK, p: Point) -> Array:
    """Also where the dynamics' mask reads grad K(m) and that of H, `own`, reads m: this brings in grad f."""
    decay, product = dynamics.weight_decay, -p.m * p.x
    own = p.s if dynamics.reads == "m" else dynamics.mask.selection(product)
    rest = -np.vecdot(decay * own + dynamics.gamma, -p.u * p.m)
    rest -= decay * np.vecdot(own * (dynamics.gamma + decay * p.s), product)
    return rest if own is p.s else rest + dynamics.alpha * decay * np.vecdot(own - p.s, p.g * p.x)


def _adam_rate(dynamics: Adam, p: Point) -> Array:
    alpha, decay, (a, c) = dynamics.alpha, dynamics.weight_decay, dynamics.corrections(p.t)
    square = c * p.v
    root = np.sqrt(square)
    growth = dynamics.gamma * c * (p.g * p.g - square) / (2 * root * (root + dynamics.eps))  # h' / h
    friction = np.vecdot(decay * p.s + 0.5 * (alpha * (a + 1) + growth), p.u * p.m)
    return -friction - decay * np.vecdot(p.s * (alpha + decay * p.s), p.y)


def sharp_gap(dynamics: Dynamics) -> float:
    """How far the paper's own H can lie from the one with the mask's primitive and the smoothed norm."""
    gap = norm_gap(dynamics.norm, dynamics.objective.shape, dynamics.smoothing) if isinstance(dynamics, LionK) else 0.0
    if dynamics.buffers > 1 and dynamics.mask.width is not None:
        gap += dynamics.weight_decay * dynamics.objective.dimension * dynamics.mask.width / 2
    return gap


def _decay(dynamics: Dynamics, product: Array, sharp: bool) -> Array:
    mask = dynamics.mask
    kept = np.maximum(product, 0.0) if sharp and mask.width is not None else mask.primitive(product)
    return dynamics.weight_decay * np.sum(kept, axis=-1)
