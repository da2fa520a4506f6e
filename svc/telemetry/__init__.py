"""What the service tells of itself: logs, metrics, traces, CloudWatch, the watchdog over the event loop; and what it tells and
asks those who run it: ECS's agent (`task_protection.py`, `ecs_agent.py`), the name of task or pod (`instance_name.py`).

Never here: anything that the work waits for. A telemetry that fails harms no message.
Begin reading at `logs.py` or `metrics.py`. The names below are the modules that other suites may use.
"""

__all__ = [
    "backlog", "cloudwatch", "instance_name", "logs", "loop_delay", "metrics", "scaling_metrics", "task_protection", "tracing",
    "watchdog",
]  # fmt: skip
