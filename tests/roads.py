"""The roads to SQS (svc/sqs/aws_client.py) that this Python has."""

import sys
from typing import Any

import pytest

from svc.sqs.aws_client import Road

ROADS: list[Road] = ["direct", "asyncio", "native"] if sys.version_info < (3, 14) else ["direct", "native"]

SLICED: list[Any] = [ROADS[0], *(pytest.param(road, marks=pytest.mark.slow) for road in ROADS[1:])]
"""The road of an ordinary run, and the others with `-m slow`: each of their tests makes a botocore client."""
