"""The roads to SQS (svc/sqs/aws_client.py) that this Python has."""

import sys

from svc.sqs.aws_client import Road

ROADS: list[Road] = ["direct", "asyncio", "native"] if sys.version_info < (3, 14) else ["direct", "native"]
