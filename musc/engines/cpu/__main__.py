"""Compiles the CPU engine's kernels: `python -m musc.engines.cpu`; with --patient, in the time that others leave."""

import os
import sys

from musc.engines import cpu

if __name__ == "__main__":
    if "--patient" in sys.argv and hasattr(os, "nice"):
        os.nice(19)
    cpu.compile_kernels()
