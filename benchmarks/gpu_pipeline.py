"""The whole pipeline on a GPU against the CPU: python -m benchmarks.gpu_pipeline. Prints differences and times."""

import time
import warnings

import numpy as np
import torch

from musc import MuSc, MuScConfig, datasets

CATEGORIES = ("tile", "bottle_top")


def main() -> None:
    if not torch.cuda.is_available():
        print("no GPU: not run")
        return
    print(torch.cuda.get_device_name())
    for name in CATEGORIES:
        category = datasets.load_category("synthetic", name=name)
        found, seconds = {}, {}
        for device, changes in (("cpu", {}), ("cuda", {}), ("cuda", {"backbone_precision": "float16"})):
            musc = MuSc(MuScConfig(device=device, **changes))
            musc.run(category)  # warms up
            with warnings.catch_warnings(record=True) as said:
                start = time.perf_counter()
                result = musc.run(category)
            key = " ".join([device, *changes.values()])
            found[key], seconds[key] = result, time.perf_counter() - start
            for warning in said:
                print(f"  {key}: {warning.message}")
        for key, result in found.items():
            apart = np.abs(result.anomaly_maps - found["cpu"].anomaly_maps).max()
            auroc = result.metrics["image"]["auroc"]
            print(f"{name}, {key}: {seconds[key]:.2f} s, maps off the CPU's by {apart:.1e}, image AUROC {auroc:.4f}")
            print("  " + ", ".join(f"{what} {took:.3f} s" for what, took in result.timings.items()))


if __name__ == "__main__":
    main()
