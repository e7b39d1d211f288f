"""The paper's algorithms (arXiv 2510.12402, Appendix B) in float64 numpy, as literally as they are printed.

Imports no code under test. A rule is ``rule(g, state, **hyper) -> u``; `state` is a dict that starts empty.
:func:`step` joins a rule and a decay mode.
"""

from __future__ import annotations

import math

import numpy as np


def sgd(g, state, *, momentum):
    """Algorithm 2: m_t = beta m_{t-1} + (1 - beta) g_t; u = m_t."""
    state["m"] = momentum * state.get("m", 0.0) + (1 - momentum) * g
    return state["m"]


def lion(g, state, *, betas):
    """Algorithm 4: u = sgn(beta1 m_{t-1} + (1 - beta1) g_t); then m_t = beta2 m_{t-1} + (1 - beta2) g_t."""
    m = state.get("m", 0.0)
    u = np.sign(betas[0] * m + (1 - betas[0]) * g)
    state["m"] = betas[1] * m + (1 - betas[1]) * g
    return u


def muon(g, state, *, momentum, nesterov=False, scale=True):
    """Algorithm 5: M_t = beta M_{t-1} + G_t; O_t = NewtonSchulz(M_t), or of G_t + beta M_t with Nesterov.

    The scale is 0.2 sqrt(max(rows, cols)).
    """
    state["m"] = momentum * state.get("m", 0.0) + g
    o = newton_schulz(g + momentum * state["m"] if nesterov else state["m"])
    return o * (0.2 * math.sqrt(max(g.shape)) if scale else 1.0)


def adam(g, state, *, betas, eps):
    """Algorithm 6: m and v with bias correction; u = mhat / (sqrt(vhat) + eps)."""
    state["t"] = state.get("t", 0) + 1
    state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g**2
    mhat = state["m"] / (1 - betas[0] ** state["t"])
    vhat = state["v"] / (1 - betas[1] ** state["t"])
    return mhat / (np.sqrt(vhat) + eps)


def newton_schulz(matrix, steps=5, coefficients=(3.4445, -4.7750, 2.0315)):
    a, b, c = coefficients
    x = matrix / np.linalg.norm(matrix)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


RULES = {"adamw": adam, "lion": lion, "muon": muon, "sgd": sgd}


def not_opposed(u, x):
    """1[u * x >= 0] for exact products: false only where the signs are strictly opposite."""
    return ~(((u > 0) & (x < 0)) | ((u < 0) & (x > 0)))


def factor(mode, x, u, g, draws=None):
    """The factor of the decay term. `draws`: the uniform numbers of the random mode, of x's shape."""
    mask = not_opposed(u, x)
    if mode == "none":
        return 0.0
    if mode == "decoupled":
        return 1.0
    if mode == "cautious":
        return mask
    if mode == "opposite":
        return ~mask
    if mode == "scaled":
        return np.mean(mask)
    if mode == "random":
        return draws < np.mean(mask)
    if mode == "gradient":
        return not_opposed(g, x)
    assert mode == "inner_product"
    return math.fsum(np.ravel(u * x)) >= 0


def spd_share(x, after, g):
    """Selective Projection Decay (arXiv 2411.01713, Algorithm 1): the share of the new distance that goes.

    x and after are distances to the anchor, before and after the plain step.
    """
    new, old = (math.sqrt(math.fsum(np.ravel(v) ** 2)) for v in (after, x))
    return max(0.0, new - old) / new if math.fsum(np.ravel(g * x)) > 0 else 0.0


def step(rule, mode, x, g, state, *, lr, weight_decay, hyper, draws=None, anchor=0.0):
    """Algorithm 1, towards an anchor: x_{t+1} = x_t - lr (u_t + lambda M(u_t, x_t - a, g_t) (x_t - a)).

    Returns x_{t+1}, u_t and M.
    """
    u = RULES[rule](g, state, **hyper)
    if mode == "spd":
        after = x - lr * u
        share = spd_share(x - anchor, after - anchor, g)
        return after - weight_decay * share * (after - anchor), u, share
    m = factor(mode, x - anchor, u, g, draws)
    return x - lr * (u + weight_decay * (m * (x - anchor))), u, m


def rounding_error(rule, mode, x, g, before, after, u, *, lr, weight_decay, hyper):
    """A bound on the error of a step that a precision with unit roundoff 1 makes, to first order.

    `before`: the rule's state before the step; `after`, `u`: what :func:`step` gave.
    """
    error = update_error(rule, g, before, u, hyper)
    if mode == "spd":  # a number: its own error, that of u and a few roundings, taken lambda |x - lr u| times
        plain = x - lr * u
        share = 8 + 2 * lr * np.linalg.norm(error) / max(np.linalg.norm(plain), np.finfo(float).tiny)
        return np.abs(after) + np.abs(x) + lr * (error + 3 * np.abs(u)) + weight_decay * share * np.abs(plain)
    # lambda, its product, the ratio, the sum, lr and its product, and the difference
    return np.abs(after) + lr * (error + 3 * np.abs(u) + 6 * weight_decay * np.abs(x))


def update_error(rule, g, before, u, hyper):
    """The part of it that is u's.

    sgd: 5 roundings (two coefficients, two products, a sum), of terms as large as they are before they cancel.
    adamw: 4 such in m, 2 in the bias correction, 8 in the denominator (5 in v, halved by the root; root, correction and
    its coefficient, eps and its sum), 1 in the quotient. lion: signs are exact. muon: the rounding of the normalised
    matrix (entries below 1) is magnified by at most a = 3.4445 in each of five iterations; later roundings less.
    """
    if rule == "lion":
        return np.zeros_like(u)
    if rule == "muon":
        return np.full_like(u, 3.4445**5 * 0.2 * math.sqrt(max(u.shape)))
    beta = hyper["momentum"] if rule == "sgd" else hyper["betas"][0]
    size = beta * np.abs(before["m"]) + (1 - beta) * np.abs(g)
    if rule == "sgd":
        return 5 * size
    t, (beta1, beta2) = before["t"] + 1, hyper["betas"]
    root = np.sqrt((beta2 * before["v"] + (1 - beta2) * g**2) / (1 - beta2**t))
    return 15 * size / (1 - beta1**t) / (root + hyper["eps"])


def state_error(name, rule, g, before, hyper):
    """A bound on the error of the state's m or v after a step, as :func:`rounding_error`: 5 roundings."""
    if rule == "muon":  # m is the sum; the average that the optimizer keeps is 1 - momentum of it
        return 5 * (hyper["momentum"] * np.abs(before["m"]) + np.abs(g))
    beta = hyper["momentum"] if rule == "sgd" else hyper["betas"][name == "v" or rule == "lion"]
    return 5 * (beta * np.abs(before[name]) + (1 - beta) * (g**2 if name == "v" else np.abs(g)))
