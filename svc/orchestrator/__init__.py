"""Where a process runs: what ECS and Kubernetes tell it of itself, and what it asks of ECS's agent.

Lives here: the names of task and pod (`names.py`), scale-in protection (`protection.py`), HTTP to the agent (`agent.py`).
Never here: AWS's own APIs (`svc.sqs`), anything that the work waits for.
Journey: none. The work is observed from the side; what goes wrong here is a line in the log and a count.
Begin reading at `protection.py`. The names below are the modules that other suites may use.
"""

__all__ = ["names", "protection"]
