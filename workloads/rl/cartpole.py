"""A pole on a cart, many of them side by side: physics and limits of Barto, Sutton and Anderson (1983), as in CartPole-v1.

The cart moves on a frictionless track; pushing it left or right with 10 N, every 20 ms, must keep the pole upright. An episode ends when the
pole leans more than 12 degrees, the cart leaves +-2.4 m, or 500 steps are over.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GRAVITY, CART_KG, POLE_KG, HALF_LENGTH_M, FORCE_N, STEP_S = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
MAX_X_M, MAX_ANGLE, MAX_STEPS = 2.4, 12 * math.pi / 180, 500


class CartPoles:
    """`state` is N x 4: position, speed, angle, angular speed. An ended episode's successor begins in the same row at once."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._generator = generator
        self.state = self._upright(count)
        self.age = torch.zeros(count, dtype=torch.int64)

    def step(self, pushed_right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moves all of them. Returns the states reached, which fell, and which only ran out of time."""
        reached = moved(self.state, pushed_right)
        self.age += 1
        fell = (reached[:, 0].abs() > MAX_X_M) | (reached[:, 2].abs() > MAX_ANGLE)
        timed_out = (self.age >= MAX_STEPS) & ~fell
        over = fell | timed_out
        self.state.copy_(torch.where(over[:, None], self._upright(len(over)), reached))
        self.age.masked_fill_(over, 0)
        return reached, fell, timed_out

    def _upright(self, count: int) -> Tensor:
        return torch.empty(count, 4).uniform_(-0.05, 0.05, generator=self._generator)


def moved(state: Tensor, pushed_right: Tensor) -> Tensor:
    """20 ms later, by Euler's method."""
    position, speed, angle, spin = state.unbind(1)
    force = torch.where(pushed_right.bool(), FORCE_N, -FORCE_N)
    total_kg = CART_KG + POLE_KG
    sine, cosine = torch.sin(angle), torch.cos(angle)
    push = (force + POLE_KG * HALF_LENGTH_M * spin**2 * sine) / total_kg
    turning = (GRAVITY * sine - cosine * push) / (HALF_LENGTH_M * (4 / 3 - POLE_KG * cosine**2 / total_kg))
    driving = push - POLE_KG * HALF_LENGTH_M * turning * cosine / total_kg
    changed = (position + STEP_S * speed, speed + STEP_S * driving, angle + STEP_S * spin, spin + STEP_S * turning)
    return torch.stack(changed, dim=1)
