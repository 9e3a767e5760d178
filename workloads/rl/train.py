"""Learns to balance a pole by trial and error: proximal policy optimisation. `python train.py --updates 80`

Nobody tells it what is right; each step that the pole is up counts one. After each 128 steps of eight carts the policy moves towards what
went better than expected, never far at once (clipped ratio, Schulman et al. 2017; generalised advantages, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torg_job
from cartpole import MAX_STEPS, CartPoles, moved
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

CARTS, STEPS_EACH, PASSES, BATCH, EVALUATED, RECENT = 8, 128, 4, 256, 100, 20
LEARNING_RATE, DISCOUNT, TRACE, CLIP, ENTROPY = 2.5e-3, 0.99, 0.95, 0.2, 0.01


@dataclass(frozen=True)
class Experience:
    """One row per cart and step."""

    states: Tensor
    actions: Tensor
    log_chances: Tensor  # of the actions, when they were taken
    advantages: Tensor
    returns: Tensor


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        self.value = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        nn.init.normal_(self.policy[-1].weight, std=0.01)

    def worth(self, states: Tensor) -> Tensor:
        expected: Tensor = self.value(states).squeeze(1)
        return expected


def main() -> None:
    settings = torg_job.parse_settings(__doc__, updates=80, seed=0)
    job = torg_job.Job(settings)
    torch.manual_seed(settings["seed"])
    agent, chance = Agent(), torch.Generator().manual_seed(settings["seed"])
    carts = CartPoles(CARTS, chance)
    optimizer = torch.optim.Adam(agent.parameters(), LEARNING_RATE, eps=1e-5)
    history: list[dict[str, float]] = []
    recent: list[int] = []  # lengths of the episodes that ended last
    job.track(agent=agent, optimizer=optimizer, chance=chance, state=carts.state, age=carts.age)
    job.track(history=history, recent=recent)

    updates = settings["updates"]
    for step in job.steps(updates):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - (step - 1) / updates)
        experience, lengths = play(agent, carts, chance)
        improve(agent, optimizer, experience, chance)
        recent[:] = [*recent, *lengths][-RECENT:]
        history.append({"episode_steps": sum(recent) / max(1, len(recent))})
        is_due = step % 10 == 0
        if is_due or step == updates:
            job.report(step, **history[-1])
        job.checkpoint(step, due=is_due)

    steps_up = evaluate(lambda states: agent.policy(states).argmax(1))
    metrics = {
        "mean_steps": steps_up.mean().item(),
        "fewest_steps": steps_up.min().item(),
        "push_where_it_leans": evaluate(lambda states: (states[:, 2] > 0).long()).mean().item(),
        "at_random": evaluate(lambda states: torch.randint(2, (len(states),), generator=chance)).mean().item(),
        "episodes": EVALUATED,
        "history": history,
    }
    draw(history, metrics, steps_up).savefig(job.outputs / "plot.png")
    job.finish(agent.state_dict(), metrics)


@torch.no_grad()
def play(agent: Agent, carts: CartPoles, chance: torch.Generator) -> tuple[Experience, list[int]]:
    """128 steps of each cart, and how long the episodes were that ended in them."""
    steps, lengths = [], list[int]()
    for _ in range(STEPS_EACH):
        states = carts.state.clone()
        log_chances = functional.log_softmax(agent.policy(states), dim=1)
        actions = torch.multinomial(log_chances.exp(), 1, generator=chance)
        age = carts.age + 1
        reached, fell, timed_out = carts.step(actions.squeeze(1))
        # An episode that only ran out of time would have gone on: its future is estimated, not taken for nothing.
        steps.append(
            (states, actions.squeeze(1), log_chances.gather(1, actions).squeeze(1), reached, fell, fell | timed_out)
        )
        lengths += age[fell | timed_out].tolist()
    states, actions, log_chances, reached, fell, over = (torch.stack(column) for column in zip(*steps, strict=True))
    worth = agent.worth(states.flatten(0, 1)).view(STEPS_EACH, CARTS)
    worth_after = agent.worth(reached.flatten(0, 1)).view(STEPS_EACH, CARTS) * ~fell
    surprises = 1.0 + DISCOUNT * worth_after - worth
    advantages, running = torch.zeros_like(worth), torch.zeros(CARTS)
    for index in reversed(range(STEPS_EACH)):
        running = surprises[index] + DISCOUNT * TRACE * ~over[index] * running
        advantages[index] = running
    rows = (states, actions, log_chances, advantages, advantages + worth)
    return Experience(*(column.flatten(0, 1) for column in rows)), lengths


def improve(agent: Agent, optimizer: torch.optim.Optimizer, experience: Experience, chance: torch.Generator) -> None:
    for _ in range(PASSES):
        for chosen in torch.randperm(len(experience.actions), generator=chance).split(BATCH):
            states, advantages = experience.states[chosen], experience.advantages[chosen]
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            log_chances = functional.log_softmax(agent.policy(states), dim=1)
            taken = log_chances.gather(1, experience.actions[chosen, None]).squeeze(1)
            ratio = (taken - experience.log_chances[chosen]).exp()
            better = torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
            misjudged = functional.mse_loss(agent.worth(states), experience.returns[chosen])
            undecided = -(log_chances.exp() * log_chances).sum(1).mean()
            loss = 0.5 * misjudged - better - ENTROPY * undecided
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


@torch.no_grad()
def evaluate(act: object) -> Tensor:
    """Steps that each of 100 fresh poles stays up, 500 at most, always the same poles."""
    carts = CartPoles(EVALUATED, torch.Generator().manual_seed(1000))
    states, steps_up, is_up = carts.state, torch.zeros(EVALUATED), torch.ones(EVALUATED, dtype=torch.bool)
    for _ in range(MAX_STEPS):
        states = moved(states, act(states))
        steps_up += is_up
        is_up &= (states[:, 0].abs() <= 2.4) & (states[:, 2].abs() <= 12 * torch.pi / 180)
    return steps_up


def draw(history: list[dict[str, float]], metrics: dict[str, object], steps_up: Tensor) -> Figure:
    figure = Figure(figsize=(9, 3.6), dpi=80, layout="constrained")
    curve, poles = figure.subplots(1, 2, width_ratios=(1.4, 1))
    played = [CARTS * STEPS_EACH * number for number in range(1, len(history) + 1)]
    curve.plot(played, [row["episode_steps"] for row in history], label="while it learns, with chance")
    for name, style in (("push_where_it_leans", "--"), ("at_random", ":")):
        curve.axhline(metrics[name], linestyle=style, color="grey", label=name.replace("_", " "))
    curve.set(xlabel="steps played", ylabel="mean steps of the last 20 episodes", ylim=(0, MAX_STEPS * 1.05))
    curve.legend(loc="center right")
    poles.bar(range(len(steps_up)), steps_up.sort().values.numpy(), width=1.0)
    poles.set(xlabel="pole, evaluated without chance", ylabel="steps up", ylim=(0, MAX_STEPS * 1.05))
    return figure


if __name__ == "__main__":
    main()
