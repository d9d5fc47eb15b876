"""Compiles the CPU engine's kernels: `python -m musc.engines.cpu`."""

from musc.engines import cpu

if __name__ == "__main__":
    cpu.compile_kernels()
