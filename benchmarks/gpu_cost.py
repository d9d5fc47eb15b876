"""Time and memory of the paper's command on a GPU (Tab. 6 and 13): python -m benchmarks.gpu_cost [--images 200].

Prints a line per run; where the environment variable OUT names a folder, gpu_cost.json and gpu_cost.csv there hold all.

ViT-L-14-336 at 518 px, stages, degrees and all else as in the paper. Neither cost depends on what the weights and the
pictures hold: the weights are drawn, the pictures noise, and no metric is computed.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

from musc import MuSc, MuScConfig

BACKBONE = "ViT-L-14-336"


def measured(musc: MuSc, pictures: list[np.ndarray], subsets: int) -> dict[str, object]:
    """The faster of two runs: milliseconds per image, of them extraction and mutual scoring, and peak MiB."""
    pipeline = MuSc(musc.config.replace(subsets=subsets), backbone=musc.backbone)
    found: dict[str, object] = {"seconds": float("inf")}
    for _ in range(2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        timings = pipeline.run(pictures).timings
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if seconds < found["seconds"]:  # type: ignore[operator]
            found = {"seconds": seconds, "peak_mib": torch.cuda.max_memory_allocated() / 2**20} | timings
    return found


def write_table(measured: Path) -> Path:
    """The figures of an earlier run's file, as the CSV table of the performance page beside it."""
    found = json.loads(measured.read_text(encoding="utf-8"))
    lines = ["precision of the network,s,ms per image,extraction s,mutual scoring s,peak MiB"]
    for row in found["rows"]:
        per_image = 1e3 * row["seconds"] / found["N"]
        numbers = f"{per_image:.1f},{row['extraction']:.2f},{row['mutual scoring']:.2f},{row['peak_mib']:.0f}"
        lines.append(f"{row['backbone_precision']},{row['s']},{numbers}")
    table = measured.with_suffix(".csv")
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_cost", description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    N = parser.parse_args().images
    if not torch.cuda.is_available():
        print("no GPU: not run")
        return
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (518, 518, 3), dtype=np.uint8) for _ in range(N)]
    print(f"{torch.cuda.get_device_name()}: {N} images, {BACKBONE}, 518 px")
    rows = []
    for precision in ("float32", "float16"):
        config = MuScConfig(backbone=BACKBONE, weights="random", device="cuda", backbone_precision=precision)
        musc = MuSc(config)
        musc.run(pictures[:8])  # compiles
        for s in (1, 2, 3):
            row = {"backbone_precision": precision, "s": s} | measured(musc, pictures, s)
            rows.append(row)
            parts = ", ".join(
                f"{k} {v:.2f} s" for k, v in row.items() if k not in ("backbone_precision", "s", "peak_mib")
            )  # type: ignore
            per_image = 1e3 * row["seconds"] / N  # type: ignore[operator]
            print(
                f"  {precision}, s = {s}: {per_image:.1f} ms per image, {row['peak_mib']:.0f} MiB ({parts})", flush=True
            )
    if out := os.environ.get("OUT"):
        found = {"device": torch.cuda.get_device_name(), "N": N, "rows": rows}
        Path(out, "gpu_cost.json").write_text(json.dumps(found, indent=1))
        write_table(Path(out, "gpu_cost.json"))


if __name__ == "__main__":
    main()
