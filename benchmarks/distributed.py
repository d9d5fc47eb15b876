"""Two workers of this machine against one process held to one thread: the same scores, and how much sooner.

python -m benchmarks.distributed [--images 200] [--side 37] [--channels 384] [--workers 2] [--turns 1] [--note TEXT]

Writes distributed.csv beside the other results. One stage, degrees 1, 3, 5, drawn features; the workers have started
and loaded everything (some images are scored first), and putting tokens into the shared folder is included.
Wall-clock time counts, on an idle machine. Where other programs take part of the processors, more processes get more of
what is left; the processor time of the busiest worker and of this process (scheduler and client, for which the
workers wait at worst) over that of one process then says what to expect without them.
"""

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.__main__ import HERE, machine
from benchmarks.msm import draw_tokens
from musc import msm
from musc.distributed.cluster import Cluster
from musc.engines.settings import Settings

AIM = 0.65  # of one process's time, by two workers on two cores


def measure(N: int, side: int, C: int, workers: int, turns: int, block: int | None) -> dict[str, object]:
    """Both ways in turns; raises AssertionError where their scores differ by more than 1e-6."""
    torch.set_num_threads(1)
    tokens = draw_tokens(N, side, C)
    taken: dict[str, list[tuple[float, float]]] = {"one": [], "cluster": []}
    with tempfile.TemporaryDirectory() as cache, Cluster(f"local:{workers}", cache=cache, device="cpu") as cluster:
        small = draw_tokens(2 * workers, side, C, seed=1)
        msm.mutual_scores([small])
        cluster.mutual_scores([small], Settings(block=1))  # every worker gets some of these pairs
        for _ in range(turns):
            start, used = time.perf_counter(), time.process_time()
            one = msm.mutual_scores([tokens])
            taken["one"].append((time.perf_counter() - start, time.process_time() - used))
            before = cluster.client.run(time.process_time)
            start, used = time.perf_counter(), time.process_time()
            shared = cluster.mutual_scores([tokens], Settings(block=block))
            seconds, own = time.perf_counter() - start, time.process_time() - used
            busiest = max(after - before[name] for name, after in cluster.client.run(time.process_time).items())
            taken["cluster"].append((seconds, own + busiest))
            apart = (one - shared).abs().max().item()
            assert apart <= 1e-6, f"scores differ by {apart}"
    (one_s, one_cpu), (shared_s, shared_cpu) = (
        [median(column) for column in zip(*rows, strict=True)] for rows in taken.values()
    )
    return {
        "images": N,
        "grid and channels": f"{side} x {side} x {C}",
        "workers": workers,
        "one process, one thread (s)": round(one_s, 1),
        "workers (s)": round(shared_s, 1),
        "share of the time": round(shared_s / one_s, 2),
        "one process (s of processor)": round(one_cpu, 1),
        "busiest worker and client (s of processor)": round(shared_cpu, 1),
        "share of processor time": round(shared_cpu / one_cpu, 2),
        "largest difference": f"{apart:.0e}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=37, help="rows and columns of patches")
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=1, help="the medians of so many are written")
    parser.add_argument("--block", type=int, help="images per block (default: by the size)")
    parser.add_argument("--note", default="", help="what else is to be said of the machine, such as other load")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    a = parser.parse_args()
    row = measure(a.images, a.side, a.channels, a.workers, a.turns, a.block)
    about = machine()
    row |= {"machine": f"{about['cpu']} {about['vector']}, {about['cores']} cores"}
    row |= {"load before": f"{os.getloadavg()[2]:.1f}", "note": a.note}
    print("\n".join(f"{name}: {value}" for name, value in row.items()))
    print(f"aim: at most {AIM} of the time by two workers on two idle cores")
    a.out.mkdir(parents=True, exist_ok=True)
    with (a.out / "distributed.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("what", "measured"), *((k, v) for k, v in row.items() if v != "")]
        )


if __name__ == "__main__":
    main()
