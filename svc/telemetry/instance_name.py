"""What the orchestrator calls us: the id of the task in ECS, the name of the pod in Kubernetes. For the fleet's table."""

import os
import re
from collections.abc import Mapping

import structlog

from svc.telemetry.ecs_agent import Agent, AgentError

log = structlog.get_logger(__name__)

PATIENCE = 2.0
"""Seconds that the start waits for ECS's agent."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_TASK = re.compile(r"arn:[^:]+:ecs:[^:]*:[^:]*:task/(?:[^/]+/)?([A-Za-z0-9-]{1,100})")


async def instance_name(environ: Mapping[str, str] | None = None) -> str | None:
    """A name that the orchestrator's own tools know too; None where there is no orchestrator, or it tells none. `environ`: if not
    this process's. Takes `PATIENCE` at most, and raises nothing."""
    environ = os.environ if environ is None else environ
    metadata = environ.get("ECS_CONTAINER_METADATA_URI_V4")
    if metadata:
        return await _task(metadata)
    # HOSTNAME is the pod's name there; on a machine of one's own it is not that of one process.
    pod = environ.get("POD_NAME") or (environ.get("HOSTNAME") if "KUBERNETES_SERVICE_HOST" in environ else None)
    return pod if pod is not None and _NAME.fullmatch(pod) else None


async def _task(metadata: str) -> str | None:
    try:
        status, told = await Agent(metadata).ask("GET", "/task", seconds=PATIENCE)
        found = _TASK.fullmatch(arn) if isinstance(arn := told.get("TaskARN"), str) else None
        if found is None:
            raise AgentError(f"its answer (HTTP {status}) names no task")
    except AgentError as error:
        log.warning(
            "the metadata of the ECS task cannot be read: this instance is named after its host", error=str(error)
        )
        return None
    return found[1]
