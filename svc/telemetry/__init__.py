"""What the service tells of itself: logs, metrics, traces, CloudWatch, and the watchdog over the event loop.

Never here: anything that the work waits for. A telemetry that fails harms no message.
Begin reading at `logs.py` or `metrics.py`. The names below are the modules that other suites may use.
"""

__all__ = ["backlog", "cloudwatch", "logs", "loop_delay", "metrics", "scaling_metrics", "tracing", "watchdog"]
