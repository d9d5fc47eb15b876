"""`python -m pretraining`: train the embedded backbone, resume, write its weights."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from musc.backbones import embedded
from musc.backbones.embedded import ViT
from musc.errors import ConfigError, MuscError
from pretraining.train import Recipe, Trainer, batches, write_log
from pretraining.whitening import whitened

LAST = "last.pt"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("--config", type=Path, help="recipe (JSON); default: the one of the weights in the package")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/procedural"), help="folder for the run")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoints in --out")
    parser.add_argument("--steps", type=int, help="stop at this step of a part (default: the recipe's)")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw images")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument(
        "--export", type=Path, help="only write the weights, or so far the last checkpoint's, to this file"
    )
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        return run(arguments)
    except MuscError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Train the parts of the recipe one after the other, each from where the one before it ended (at its last step, or
    at its "stop"), or from the mean of some."""
    path = arguments.config or Path(__file__).with_name("procedural.json")
    plan = json.loads(path.read_text())
    parts = plan["parts"]
    folders = [arguments.out / str(number) for number, _ in enumerate(parts)]
    if arguments.export:
        embedded.save(result(folders, plan), arguments.export)
        return 0
    for part, folder, before in zip(parts, folders, [None, *folders], strict=False):
        recipe = Recipe.from_dict(part["recipe"])
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.resume and (folder / LAST).is_file():
            trainer = Trainer.resume(folder / LAST, recipe)
        elif part["start"] == "random" or before is None:
            trainer = Trainer(recipe)
        elif part["start"] == "checkpoint":
            trainer = Trainer.resume(before / LAST, recipe)
        else:
            shares = part["start"] if isinstance(part["start"], dict) else {before.name: 1.0}
            embedded.save(mean(folders, shares, recipe.vit.image_size), before / "weights.safetensors")
            trainer = Trainer(recipe, before / "weights.safetensors")
        train(trainer, folder, arguments, part.get("stop", recipe.steps))
        if arguments.steps and trainer.number >= arguments.steps:
            break
    return 0


def mean(folders: list[Path], shares: dict[str, float], image_size: int | None) -> ViT:
    """The mean of the weights that some parts ended with (shares: of each by its number), its position embedding
    resized to the input size."""
    models = [Trainer.resume(folders[int(number)] / LAST).averaged().resized(image_size) for number in shares]
    return embedded.mean(models, list(shares.values()))


def result(folders: list[Path], plan: dict[str, Any]) -> ViT:
    """The network of the last checkpoint; once the last part has one, the mean that the plan asks for ("average"), for
    its input size ("image_size"), of its first blocks ("depth"), with whitened patch tokens ("whitening": the settings
    of `whitened`, for what the last part's program draws)."""
    found = [number for number, folder in enumerate(folders) if (folder / LAST).is_file()]
    if not found:
        raise ConfigError(f"{folders[0].parent}: no checkpoint to export; train first, with this folder as --out.")
    shares = {str(found[-1]): 1.0}
    if found[-1] == len(folders) - 1:
        shares = plan.get("average", shares)
    model = mean(folders, shares, plan.get("image_size")).shortened(plan.get("depth"))
    if "whitening" not in plan:
        return model
    program = Recipe.from_dict(plan["parts"][-1]["recipe"]).program
    return whitened(model, program=program, **plan["whitening"])


def train(trainer: Trainer, folder: Path, arguments: argparse.Namespace, stop: int) -> None:
    """Run one part to step `stop` (or to --steps), with a checkpoint and a log every so often."""
    recipe = trainer.recipe
    end = min(recipe.steps, stop, arguments.steps or stop)
    for images, masks in batches(recipe, trainer.number, arguments.workers):
        if trainer.number >= end:
            break
        line = trainer.step(images, masks)
        if trainer.number % 10 == 0:
            print(" ".join(f"{k} {v:.4g}" for k, v in line.items()), flush=True)
        if trainer.number % arguments.every == 0 or trainer.number == end:
            trainer.save(folder / LAST)
            write_log(trainer.log, folder / "log.csv")


if __name__ == "__main__":
    sys.exit(main())
