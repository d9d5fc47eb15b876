"""Training from a recipe, resumable at any checkpoint, the same from the same seed."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from musc.backbones import embedded
from musc.backbones.embedded import ViT, ViTConfig
from musc.errors import ConfigError
from pretraining.images import Program, batch
from pretraining.objective import objective


@dataclass(frozen=True)
class Phase:
    """Steps up to `until`, each on `products` products with `count` images of `size` pixels."""

    until: int
    size: int = 96
    products: int = 6
    count: int = 5


@dataclass(frozen=True)
class Recipe:
    """All that determines a run. lr: of the matrices (Muon, unit update scale); lr_rest: of all else (AdamW)."""

    seed: int = 0
    phases: tuple[Phase, ...] = (Phase(until=2000),)
    vit: ViTConfig = field(default_factory=ViTConfig)
    lr: float = 0.02
    lr_rest: float = 2e-3
    weight_decay: float = 0.02
    warmup: int = 50
    level: float = 0.5
    average: float = 0.99
    pool: int = 400
    queries: int = 64
    hardest: int = 0
    foreign: int = 512
    degrees: tuple[int, ...] = (1, 3)
    image_weight: float = 0.0
    identity_weight: float = 0.3
    product_weight: float = 0.1
    local_weight: float = 0.5
    state_weight: float = 0.0
    graded_weight: float = 0.0
    program: Program = field(default_factory=Program)

    @property
    def steps(self) -> int:
        return self.phases[-1].until

    def phase(self, step: int) -> Phase:
        return next(p for p in self.phases if step < p.until)

    def rate(self, step: int) -> float:
        """Factor of the learning rates: a linear rise, level to `level` of the steps, a straight line down to 2 %."""
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * max(0.02, min(1.0, (1 - step / self.steps) / (1 - self.level)))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Recipe:
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(plain) - known):
            raise ConfigError(f"unknown settings {', '.join(unknown)}; the known ones are {', '.join(sorted(known))}.")
        values = dict(plain)
        if "phases" in values:
            values["phases"] = tuple(Phase(**phase) for phase in values["phases"])
        if "degrees" in values:
            values["degrees"] = tuple(values["degrees"])
        if "program" in values:
            values["program"] = Program.from_dict(values["program"])
        if "vit" in values:
            values["vit"] = ViTConfig.from_dict(values["vit"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearly the orthogonal factor of a matrix, by Newton-Schulz iterations (Jordan et al. 2024, Muon)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised: per step it learns more than AdamW from few images.

    The queries', keys' and values' parts of one matrix are treated apart.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"])
                parts = update.chunk(3) if p.shape[0] == 3 * p.shape[1] else (update,)
                update = torch.cat([orthogonalized(part) for part in parts])
                scale = max(1.0, parts[0].shape[0] / parts[0].shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def optimizers(model: ViT, heads: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in (*model.parameters(), *heads.parameters()) if id(p) not in chosen]
    return [
        Muon(matrices, recipe.lr, weight_decay=recipe.weight_decay / recipe.lr * 0.1),
        torch.optim.AdamW(rest, recipe.lr_rest, betas=(0.9, 0.95), weight_decay=recipe.weight_decay),
    ]


def varied(images: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The same products turned, mirrored, with their colour channels exchanged and perhaps negated."""
    turns = int(rng.integers(4))
    images, masks = np.rot90(images, turns, (2, 3)), np.rot90(masks, turns, (2, 3))
    if rng.random() < 0.5:
        images, masks = images[:, :, ::-1], masks[:, :, ::-1]
    images = images[..., rng.permutation(3)].copy()
    negated = rng.random(len(images)) < 0.3
    images[negated] = 255 - images[negated]
    return images, masks.copy()


def batches(recipe: Recipe, first: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches from step `first` on: each phase draws `pool` of them by the image program, in `workers` other
    processes (0: in this one), and then takes them in turn again, varied."""

    def number(step: int) -> int:
        """Of the drawn batch that step uses: its first use's step."""
        start = max([p.until for p in recipe.phases if p.until <= step], default=0)
        return start + (step - start) % recipe.pool

    def draw(step: int) -> Future | tuple[np.ndarray, np.ndarray]:
        phase = recipe.phase(step)
        arguments = (recipe.seed, number(step), phase.products, phase.count, phase.size, recipe.program)
        return pool.submit(batch, *arguments) if pool else batch(*arguments)

    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers else None
    ahead, kept = 6 * workers, {}
    try:
        for step in range(first, recipe.steps):
            for later in range(step, min(step + ahead + 1, recipe.steps)):
                if number(later) not in kept:
                    kept[number(later)] = draw(later)
            drawn = kept[number(step)]
            if isinstance(drawn, Future):
                drawn = kept[number(step)] = drawn.result()
            images, masks = drawn
            again = number(step) != step
            yield varied(images, masks, np.random.default_rng([recipe.seed, step])) if again else (images, masks)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def pixels(images: np.ndarray, config: ViTConfig) -> Tensor:
    """Drawn images [P, K, S, S, 3] uint8 as a network of this shape takes them, normalised [P * K, 3, S, S]."""
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (config.mean, config.std))
    return (rearrange(torch.from_numpy(images), "p k h w c -> (p k) c h w").float() / 255 - mean) / std


def grown(model: ViT, config: ViTConfig, seed: int = 0) -> ViT:
    """A network of shape `config`, as deep as `model` or deeper, whose added blocks change no token at first."""
    new = ViT(config)
    new.reset_parameters(torch.Generator().manual_seed(seed))
    for block in cast("list[embedded.Block]", list(new.blocks)[model.depth :]):
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(cast(nn.Linear, block.mlp[-1]).weight)
    new.load_state_dict(new.state_dict() | model.state_dict())
    return new


class Trainer:
    """The state of a run: network, its moving average, optimisers, step and log."""

    def __init__(self, recipe: Recipe, weights: Path | None = None) -> None:
        """weights: an exported file to start from (None: random weights from the recipe's seed)."""
        self.recipe, self.number = recipe, 0
        if weights:
            self.model = grown(embedded.load(weights), recipe.vit, recipe.seed)
        else:
            self.model = ViT(recipe.vit)
            self.model.reset_parameters(torch.Generator().manual_seed(recipe.seed))
            first = recipe.phases[0]
            images, _ = batch(recipe.seed, -1 % 2**31, first.products, 2, first.size)
            self.model.centre(pixels(images, recipe.vit))
        # One linear probe per stage, thrown away after training.
        self.heads = nn.ModuleList(nn.Linear(recipe.vit.width, 1) for _ in self.model.default_stages)
        for head in cast("list[nn.Linear]", self.heads):
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, -3.0)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.optimizers = optimizers(self.model, self.heads, recipe)
        self.rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.log: list[dict[str, float]] = []

    def step(self, images: np.ndarray, masks: np.ndarray) -> dict[str, float]:
        """One update; images [P, K, S, S, 3] uint8 and masks [P, K, S, S]; returns the line of the log."""
        start, recipe = time.perf_counter(), self.recipe
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.number)
        stages, class_tokens = self.model.forward_stages(pixels(images, recipe.vit))
        loss, parts = objective(
            stages,
            class_tokens,
            torch.from_numpy(masks),
            recipe.vit.patch_size,
            generator,
            queries=recipe.queries,
            hardest=recipe.hardest,
            foreign=recipe.foreign,
            degrees=recipe.degrees,
            image_weight=recipe.image_weight,
            identity_weight=recipe.identity_weight,
            product_weight=recipe.product_weight,
            local_weight=recipe.local_weight,
            state_weight=recipe.state_weight,
            graded_weight=recipe.graded_weight,
            heads=self.heads,
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 3.0)
        factor = recipe.rate(self.number)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        # A young average forgets faster, so that it does not remember the random start.
        keep = min(recipe.average, (1 + self.number) / (10 + self.number))
        for key, value in self.model.state_dict().items():
            self.average[key].lerp_(value, 1 - keep)
        line = {"step": float(self.number), "loss": float(loss.detach()), **parts}
        line["seconds"] = time.perf_counter() - start
        self.number += 1
        self.log.append(line)
        if not math.isfinite(line["loss"]):
            raise ArithmeticError(f"step {self.number}: the loss is {line['loss']}; lower the learning rate.")
        return line

    def state(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "step": self.number,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "log": self.log,
        }

    @classmethod
    def resume(cls, path: str | Path, recipe: Recipe | None = None) -> Trainer:
        """Continue from a checkpoint; another `recipe` of the same network may lengthen or change the run."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        trainer = cls(recipe or Recipe.from_dict(state["recipe"]))
        trainer.number, trainer.log = state["step"], state["log"]
        trainer.model.load_state_dict(state["model"])
        trainer.heads.load_state_dict(state["heads"])
        trainer.average = state["average"]
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return trainer

    def save(self, path: Path) -> None:
        """Write the checkpoint in one move, so that a killed run leaves the last whole one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.state(), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def averaged(self) -> ViT:
        """The network with its averaged weights: what is evaluated and shipped."""
        model = ViT(self.recipe.vit)
        model.load_state_dict(self.average)
        return model.eval().requires_grad_(False)


def write_log(log: list[dict[str, float]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for line in log for name in line)))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in line.items()} for line in log)
