"""The roads to SQS (svc/aws_client.py) that this Python has."""

import sys

from svc.aws_client import Road

ROADS: list[Road] = ["asyncio", "native"] if sys.version_info < (3, 14) else ["native"]
