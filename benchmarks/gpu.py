"""The GPU engine on features of a large ViT's size: checked against float64, timed against the GPU's own matrix rate.

python -m benchmarks.gpu [--images 200] [--stages 4] [--side 37] [--channels 1024] [--tune]

Prints tables; where the environment variable OUT names a folder, gpu.json there holds all numbers. --tune also times
other tiles (some 3 s each, to compile).
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from musc import lnamd, msm
from musc.engines import blocked, gpu
from musc.engines.gpu import tiles
from musc.engines.gpu.tiles import Tile
from musc.engines.gpu.tokens import Held
from musc.engines.pairs import Distances, Job, Plan, Write, plan_pool

DEGREES = (1, 3, 5)
HOPPER = Tile()
WIDE = replace(HOPPER, cols=256, warps=8, stages=4)
TILES = {
    "a program per tile": replace(HOPPER, resident=0),
    "128x256, 8 warps, one resident": replace(WIDE, resident=1),
    "128x128, addresses (Ampere)": tiles.TILES[1],
}
# of `nearest_distances`: images at a time, channels at a time, warps
NEAREST = [(4, 128, 1), (2, 128, 1), (1, 1024, 2), (1, 512, 1), (2, 1024, 1), (2, 1024, 2), (2, 512, 1), (4, 1024, 1)]


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median time on the device, after one run that compiles."""
    work()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return sorted(times)[repeats // 2]


def wall(work: Callable[[], object]) -> tuple[float, float, float]:
    """Seconds of one run, those after which the host was free, and peak bytes beyond what stood before it."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    work()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    return time.perf_counter() - start, host, torch.cuda.max_memory_allocated() - before


def matrix_rate(dtype: torch.dtype, n: int = 8192) -> float:
    """FLOP/s of a large square product: the ceiling, measured."""
    a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, 20)


def random_tokens(N: int, side: int, C: int, seed: int = 0) -> torch.Tensor:
    """[N, side^2, C]: what all images share, and noise."""
    g = torch.Generator("cuda").manual_seed(seed)
    common = torch.randn(1, side * side, C, device="cuda", generator=g)
    return torch.randn(N, side * side, C, device="cuda", generator=g).mul_(0.7).add_(common)


def smooth_tokens(N: int, side: int, C: int, seed: int = 0) -> torch.Tensor:
    """[N, side^2, C] as `benchmarks.msm` draws them: a smooth map per image and noise of half its size."""
    g = torch.Generator("cuda").manual_seed(seed)
    maps = F.interpolate(torch.randn(N, 64, 6, 6, device="cuda", generator=g), (side, side), mode="bicubic")
    tokens = maps.flatten(2).transpose(1, 2) @ torch.randn(64, C, device="cuda", generator=g) / 8
    return tokens.add_(torch.randn(N, side * side, C, device="cuda", generator=g), alpha=0.5)


def near_ties(N: int, side: int, C: int, apart: float) -> torch.Tensor:
    """[N, side^2, C]: eight directions, and neighbours that half precision cannot rank."""
    directions = torch.randn(8, C, device="cuda")
    tokens = directions[torch.randint(8, (N, side * side), device="cuda")]
    return tokens + apart * torch.randn_like(tokens) + 0.2 * torch.randn(N, 1, C, device="cuda")


def job(tokens: torch.Tensor, plan: Plan, side: int, write: Write = lambda images, slots, found: None) -> Job:
    """What an engine is to do with tokens [N, side^2, C]."""
    return Job(tokens.__getitem__, plan, DEGREES, (side, side), write, lambda n: None)


def furthest_off(tokens: torch.Tensor, tile: Tile | None = None) -> float:
    """The largest difference of a distance from float64's, over all pairs and degrees; infinite where one is NaN."""
    N, M, _ = tokens.shape
    side = int(M**0.5)
    plan, worst = plan_pool(N), 0.0
    out = torch.full((len(DEGREES), N, N - 1, M), float("nan"), device="cuda")
    gpu.stage_distances(job(tokens, plan, side), out, tile)
    for d, degree in enumerate(DEGREES):
        unit = lnamd.aggregate(tokens.double(), degree)
        for i, p in plan.pairs():
            found = out[d, i, plan.slot[i, p]], out[d, p, plan.slot[p, i]]
            for got, expected in zip(found, blocked.nearest(unit[i], unit[p]), strict=True):
                worst = max(worst, (got - expected).abs().nan_to_num(float("inf")).max().item())
    return worst


def correctness() -> list[dict[str, Any]]:
    cases = {
        "random 37x37x1024": random_tokens(4, 37, 1024),
        "smooth 37x37x1024": smooth_tokens(4, 37, 1024),
        "near ties 1e-2, 37x37x1024": near_ties(2, 37, 1024, 1e-2),
        "near ties 1e-4, 16x16x1024": near_ties(3, 16, 1024, 1e-4),
        "smooth 14x14x192": smooth_tokens(20, 14, 192),
        "random 32x32x96": random_tokens(5, 32, 96),
        "random 7x7x1000": random_tokens(12, 7, 1000),
        "random 50x50x768": random_tokens(3, 50, 768),
    }
    rows = [{"tokens": name, "off": furthest_off(tokens)} for name, tokens in cases.items()]
    twice = cases["smooth 37x37x1024"].clone()
    twice[3] = twice[0]
    same = msm.stage_distances(twice, DEGREES)
    rows.append({"tokens": "an image twice", "off": torch.stack([same[:, 0, 2], same[:, 3, 0]]).max().item()})
    half = msm.stage_distances(cases["random 32x32x96"], DEGREES, precision="bfloat16")
    both = half - msm.stage_distances(cases["random 32x32x96"], DEGREES)
    rows.append({"tokens": "bfloat16 against float32", "off": both.abs().max().item()})
    for row in rows:
        print(f"  {row['tokens']:32} {row['off']:.1e}{'' if row['off'] <= 1e-6 else '  WRONG'}")
    return rows


def a_launch(tokens: torch.Tensor, tile: Tile) -> tuple[Held, torch.Tensor, gpu.Region]:
    """Images held, and the launch of the first half against the others."""
    N, M, _ = tokens.shape
    side = int(M**0.5)
    held = Held(lambda p: tokens[p], N, N, DEGREES, (side, side), tile)
    held.hold(0, keep=0)
    wanted = torch.ones(N, N, dtype=torch.uint8, device="cuda")
    return held, wanted, gpu.Region(range(N // 2), range(N // 2, N), 0, N // 2, pairs=(N // 2) ** 2)


def time_launch(name: str, tokens: torch.Tensor, tile: Tile, rate: float, which: str = "both") -> list[dict[str, Any]]:
    """Both kernels on one launch at three degrees: milliseconds, and the share of the rate."""
    N, M, C = tokens.shape
    flop = len(DEGREES) * (N // 2) ** 2 * 2 * M * M * C
    held, wanted, region = a_launch(tokens, tile)
    starts = torch.arange((N // 2) ** 2, device="cuda").view(N // 2, -1) * M
    out = torch.empty(len(DEGREES), 2 * starts.numel() * M, device="cuda")
    try:
        keys = gpu.largest_cosines(held, wanted, region, tile)
    except Exception as error:  # a tile may ask for more shared memory or registers than there are
        print(f"  {name:32} {type(error).__name__}: {str(error)[:80]}")
        return []
    work = {
        "tile_maxima": lambda: gpu.largest_cosines(held, wanted, region, tile),
        "nearest_distances": lambda: gpu.measure(held, keys, region, out, starts, starts + starts.numel() * M, tile),
    }
    rows = []
    for kernel in work if which == "both" else [which]:
        took = seconds(work[kernel], 15)
        rows.append({"kernel": kernel, "tile": name, "seconds": took, "share": flop / took / rate})
        share = f", {flop / took / rate:.0%} of the rate" if kernel == "tile_maxima" else ""
        print(f"  {name:32} {kernel:18} {took * 1e3:.3f} ms{share}", flush=True)
    return rows


def time_tiles(rate: float, side: int, C: int, everything: bool, stop: float) -> list[dict[str, Any]]:
    """One launch of 64 pairs by the default tile; of others, and of more pairs, where everything is asked for."""
    tokens = smooth_tokens(16, side, C)
    default = tiles.default_tile(tokens.device, C)
    rows = time_launch("default, 8 x 8 images", tokens, default, rate)
    rows += time_launch("  independent random tokens", random_tokens(16, side, C), default, rate)
    if not everything:
        return rows
    for partners, channels, warps in NEAREST:
        if time.monotonic() < stop:
            tile = replace(default, partners=partners, refine_channels=channels, refine_warps=warps)
            rows += time_launch(f"  {partners} {channels} {warps}", tokens, tile, rate, "nearest_distances")
    for name, tile in TILES.items():
        if time.monotonic() < stop:
            rows += time_launch("  " + name, tokens, tile, rate, "tile_maxima")
    for images in (4, 12, 16):
        rows += time_launch(f"  {images} x {images} images", smooth_tokens(2 * images, side, C), default, rate)
    return rows


def crowded(tokens: torch.Tensor) -> dict[str, float]:
    """Candidates measured per token, and the share of tokens with a sub-tile that is measured whole; rows, columns."""
    tile = tiles.default_tile(tokens.device)
    held, wanted, region = a_launch(tokens, tile)
    row_best, row_second, col_best, col_second = gpu.largest_cosines(held, wanted, region, tile)
    A, C = len(region.a), tokens.shape[2]
    ways = {"row": (row_best, row_second, 0, A), "column": (col_best, col_second, A, 0)}
    found = {}
    for way, (best, second, mine, other) in ways.items():
        shape = (*best.shape[:1], A, best.shape[1] // A, A, -1)  # [D, a, M, b, sub-tiles]
        error = held.error[:, mine : mine + A][:, :, None, None, None], held.error[:, other : other + A]
        margin = 2 * (error[0] + error[1][:, None, None, :, None] + gpu.slack(C))
        best, second = best.view(shape) >> 5, second.view(shape) >> 5
        least = best.amax(dim=-1, keepdim=True) - (margin * 2**17).int() - 1
        found[f"{way} candidates"] = (best >= least).sum(dim=-1).float().mean().item()
        found[f"{way} sub-tiles"] = (second >= least).sum(dim=-1).float().mean().item()
    return found


def flops(N: int, M: int, C: int) -> float:
    """Of every pair's products, each pair once, at three degrees."""
    return len(DEGREES) * N * (N - 1) * M * M * C


def report(name: str, work: Callable[[], object], flop: float, rate: float, images: int) -> dict[str, Any]:
    """One run: seconds, share of the rate, milliseconds per image, and memory beyond the features."""
    took, host, peak = wall(work)
    print(
        f"  {name:32} {took:.3f} s (host {host:.3f} s)"
        + (f", {flop / took / 1e12:.0f} TFLOP/s, {flop / took / rate:.0%} of the rate" if flop else "")
        + f", {1e3 * took / images:.2f} ms per image, peak {peak / 2**20:.0f} MiB",
        flush=True,
    )
    row = {"what": name, "seconds": took, "host": host, "ms_per_image": 1e3 * took / images, "peak_mib": peak / 2**20}
    return row | ({"share": flop / took / rate} if flop else {})


def whole(N: int, side: int, C: int, count: int, rate: float) -> list[dict[str, Any]]:
    """`mutual_scores` of N images: one stage in its parts, then `count` stages, then in subsets (Tables 6 and 13)."""
    stages = [smooth_tokens(N, side, C, seed) for seed in range(count)]
    flop = flops(N, side * side, C)
    msm.mutual_scores([stages[0][:20]], DEGREES)  # compiles
    tile, grid = tiles.default_tile(stages[0].device), (side, side)

    def prepare() -> None:
        Held(lambda p: stages[0][p], N, N, DEGREES, grid, tile).hold(0, keep=0)

    prepare()
    rows = [report("preparing one stage", prepare, 0, rate, N)]
    rows.append(report("distances of one stage", lambda: msm.stage_distances(stages[0], DEGREES), flop, rate, N))
    rows.append(report("scores, 1 stage", lambda: msm.mutual_scores(stages[:1], DEGREES), flop, rate, N))
    for subsets in (1, 2, 3):
        parts = [[s[k::subsets].contiguous() for s in stages] for k in range(subsets)]
        work = count * sum(flops(len(p[0]), side * side, C) for p in parts)
        name = f"scores, {count} stages, s = {subsets}"
        rows.append(report(name, lambda p=parts: [msm.mutual_scores(x, DEGREES) for x in p], work, rate, N))  # type: ignore
        del parts
    return rows


def scaling(side: int, C: int, rate: float) -> list[dict[str, Any]]:
    """One stage's scores by the number of images."""
    rows = []
    for N, s, channels in [
        (50, side, C),
        (100, side, C),
        (200, side, C),
        (400, side, C),
        (1000, 16, 384),
        (2000, 16, 384),
    ]:
        tokens = smooth_tokens(N, s, channels)
        msm.mutual_scores([tokens[:20]], DEGREES)  # compiles
        work = flops(N, s * s, channels)
        name = f"N = {N}, {s} x {s} x {channels}"
        rows.append(report(name, lambda t=tokens: msm.mutual_scores([t], DEGREES), work, rate, N))  # type: ignore
    return rows


def any_device(N: int, side: int, C: int) -> list[dict[str, Any]]:
    """The any-device engine (float32) and this one on N images."""
    tokens, plan = smooth_tokens(N, side, C), plan_pool(N)
    out = torch.empty(len(DEGREES), N, N - 1, side * side, device="cuda")

    def write(images: list[int], slots: list[int], distances: Distances) -> None:
        out[:, images, slots] = torch.as_tensor(distances)

    def plain(many: int = N) -> None:
        some = plan_pool(many)
        blocked.stage_distances(job(tokens, some, side, write))

    plain(2)
    took, _, _ = wall(plain)
    was = out.clone()
    ours, _, _ = wall(lambda: gpu.stage_distances(job(tokens, plan, side), out))
    off = (was - out).abs().max().item()
    print(f"  N = {N}: any-device {took:.2f} s, this {ours:.3f} s, ratio {took / ours:.1f}, apart {off:.1e}")
    return [{"N": N, "plain_s": took, "ours_s": ours, "apart": off}]


def write_table(measured: Path) -> Path:
    """The times of whole runs in an earlier run's file, as the CSV table of the performance page beside it."""
    found = json.loads(measured.read_text(encoding="utf-8"))
    lines = ["what,seconds,ms per image,share of the matrix rate in %,peak MiB"]
    for section, rows in found.items():
        if section.startswith(("N = ", "one stage's scores")):
            for row in rows:
                share = f"{100 * row['share']:.0f}" if row.get("share") else ""
                numbers = f"{row['seconds']:.3f},{row['ms_per_image']:.2f},{share},{row['peak_mib']:.0f}"
                lines.append(f'"{row["what"].strip()}",{numbers}')
    table = measured.with_suffix(".csv")
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    for name, value in (("images", 200), ("stages", 4), ("side", 37), ("channels", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tune", action="store_true", help="time other tiles too")
    parser.add_argument("--table", type=Path, metavar="JSON", help="only make the page's table of that file")
    o = parser.parse_args()
    if o.table:
        print(write_table(o.table))
        return
    if not torch.cuda.is_available():
        print("no GPU: not run")
        return
    if not gpu.available(torch.device("cuda"), (o.side, o.side), o.channels, DEGREES):
        print(f"{torch.cuda.get_device_name()}: the engine cannot run here")
        return
    start = time.monotonic()
    rates = {str(t).split(".")[-1]: matrix_rate(t) for t in (torch.bfloat16, torch.float16)}
    rate = rates["bfloat16"]
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; products of 8192^3: "
        + ", ".join(f"{name} {r / 1e12:.0f} TFLOP/s" for name, r in rates.items())
    )
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "rates": rates}

    def section(name: str, work: Callable[[], Any]) -> None:
        print(f"{name} (after {time.monotonic() - start:.0f} s)", flush=True)
        try:
            found[name] = work()
        except Exception as error:  # the others are still worth their time
            print(f"  {type(error).__name__}: {str(error)[:300]}")
        torch.cuda.empty_cache()

    section("off float64 at most", correctness)
    section(
        f"N = {o.images}, {o.side} x {o.side} x {o.channels}, degrees 1, 3, 5",
        lambda: whole(o.images, o.side, o.channels, o.stages, rate),
    )
    section("one stage's scores by the number of images", lambda: scaling(o.side, o.channels, rate))
    section("against the any-device engine", lambda: any_device(40, o.side, o.channels))

    def shares() -> dict[str, dict[str, float]]:
        parts = {"random": crowded(random_tokens(16, o.side, o.channels)),
                 "smooth": crowded(smooth_tokens(16, o.side, o.channels))}  # fmt: skip
        for name, part in parts.items():
            print(f"  {name}: " + ", ".join(f"{k} {v:.4f}" for k, v in part.items()))
        return parts

    section("candidates, and sub-tiles measured whole, per token", shares)
    section("one launch", lambda: time_tiles(rate, o.side, o.channels, o.tune, start + 130))
    if out := os.environ.get("OUT"):
        Path(out, "gpu.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
