"""What a run leaves behind, and every view of it: thresholds, metrics, tables and figures."""

from musc.results.result import Metrics, MuScResult, cpu_name, environment, result_folder

__all__ = ["Metrics", "MuScResult", "cpu_name", "environment", "result_folder"]
