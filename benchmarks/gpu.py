"""The GPU engine on features of a large ViT's size: checked against float64, timed against torch.cdist.

python -m benchmarks.gpu [--images 200] [--stages 4] [--side 37] [--channels 1024] [--precision bfloat16]
"""

import argparse
from collections.abc import Callable

import torch

from musc import lnamd, msm
from musc.engines import blocked, gpu

TILES = (gpu.Tile(), gpu.Tile(warps=4), gpu.Tile(stages=3), gpu.Tile(128, 256), gpu.Tile(64, 128, warps=4))


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
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


def matrix_rate(dtype: torch.dtype, n: int = 8192) -> float:
    """FLOP/s of a large square product: the roofline, measured."""
    a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, 10)


def plain_pairs(x: torch.Tensor, degrees: tuple[int, ...], pairs: list[tuple[int, int]]) -> None:
    """The plain way: torch.cdist of each ordered pair at each degree."""
    for degree in degrees:
        tokens = lnamd.aggregate(x, degree)
        for i, j in pairs:
            torch.cdist(tokens[i], tokens[j]).amin(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    for name, value in (("images", 200), ("stages", 4), ("side", 37), ("channels", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=tuple(gpu.DTYPES), default="bfloat16")
    o = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: not run")
        return
    if not gpu.available(torch.device("cuda")):
        print(f"{torch.cuda.get_device_name()}: no triton, or no bfloat16 tensor cores: not run")
        return
    N, M, C, degrees = o.images, o.side**2, o.channels, (1, 3, 5)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, N={N} M={M} C={C}, "
        f"{o.stages} stages, {o.precision}"
    )
    common = torch.randn(1, M, C, device="cuda")
    stages = [common + 0.7 * torch.randn(N, M, C, device="cuda") for _ in range(o.stages)]

    few = stages[0][:3]
    got = msm.stage_distances(few, degrees, precision=o.precision).double()
    for d, degree in enumerate(degrees):
        unit = lnamd.aggregate(few.double(), degree)
        forward, backward = blocked.nearest(unit[0], unit[1])
        off = torch.stack([got[d, 0, 0] - forward, got[d, 1, 0] - backward])
        print(f"degree {degree}: against float64 at most {off.abs().max():.1e}, mean {off.abs().mean():.1e}")

    rate = matrix_rate(gpu.DTYPES[o.precision])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours = seconds(lambda: msm.mutual_scores(stages, degrees, precision=o.precision))
    peak = torch.cuda.max_memory_allocated() - before
    flop = o.stages * len(degrees) * N * (N - 1) / 2 * 2 * M * M * C
    print(
        f"mutual_scores: {ours:.2f} s, {flop / ours / rate:.0%} of {rate / 1e12:.0f} TFLOP/s, "
        f"peak {peak / 2**30:.1f} GiB"
    )

    sample = [(i, j) for i in range(min(N, 10)) for j in range(min(N, 10)) if i != j]
    plain = seconds(lambda: plain_pairs(stages[0][:10], degrees, sample)) / len(sample) * N * (N - 1) * o.stages
    print(f"the plain way: {plain:.1f} s (from {len(sample)} ordered pairs), ratio {plain / ours:.1f}")

    held = gpu.Held(min(N, 16), few[0], degrees, (o.side, o.side), gpu.DTYPES[o.precision])
    held.hold(set(range(min(N, 16))), lambda p: stages[0][p])
    slots = torch.combinations(torch.arange(min(N, 16)))[: gpu.CHUNK].T.contiguous().int().cuda()
    for tile in TILES:
        try:
            one = seconds(lambda tile=tile: gpu.nearest(held, *slots, 4 * gpu.ROUNDOFF[o.precision], tile))  # type: ignore
        except Exception as error:  # a tile may ask for more shared memory than there is
            print(f"{tile}: {type(error).__name__}")
            continue
        print(f"{tile}: {len(degrees) * slots.shape[1] * 2 * M * M * C / one / rate:.0%} of the roofline, both kernels")


if __name__ == "__main__":
    main()
