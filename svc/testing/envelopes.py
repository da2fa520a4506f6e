"""Bodies as SNS, EventBridge and S3 write them into a queue: for `ScriptedQueue.put_sns()` and its like, and for a real queue.

The forms are those of the SNS developer guide ("Parsing message formats"), the EventBridge user guide ("Event structure
reference") and the S3 user guide ("Event message structure"). What a test does not say is made up, and the same each time.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote_plus

TOPIC_ARN = "arn:aws:sns:eu-west-1:123456789012:topic"
MESSAGE_ID = "11111111-2222-3333-4444-555555555555"
TIME = "2026-01-01T00:00:00.000Z"
ACCOUNT, REGION = "123456789012", "eu-west-1"


def sns_body(
    payload: object,
    *,
    topic_arn: str = TOPIC_ARN,
    subject: str | None = None,
    attributes: Mapping[str, str | int | float | bytes] | None = None,
    message_id: str = MESSAGE_ID,
) -> str:
    """An SNS notification. A payload that is no string goes as JSON; `attributes` are the publisher's message attributes
    (`traceparent` among them, when the publisher is traced)."""
    told: dict[str, Any] = {"Type": "Notification", "MessageId": message_id, "TopicArn": topic_arn}
    if subject is not None:
        told["Subject"] = subject
    told |= {"Message": _text(payload), "Timestamp": TIME, "SignatureVersion": "1", "Signature": "EXAMPLE"}
    if attributes:
        told["MessageAttributes"] = {name: _sns_attribute(value) for name, value in attributes.items()}
    return json.dumps(told)


def event_body(
    detail: object,
    *,
    source: str = "test",
    detail_type: str = "test",
    id: str = MESSAGE_ID,
    resources: Sequence[str] = (),
) -> str:
    """An event as a rule of EventBridge sends it to a queue. `detail` is any JSON value; EventBridge's own are objects."""
    return json.dumps(
        {
            "version": "0",
            "id": id,
            "detail-type": detail_type,
            "source": source,
            "account": ACCOUNT,
            "time": TIME,
            "region": REGION,
            "resources": list(resources),
            "detail": detail,
        }
    )


def s3_body(*keys: str, bucket: str = "bucket", event: str = "ObjectCreated:Put", size: int = 1) -> str:
    """An S3 notification with a record for each key, which is given as it is in the bucket. Raises `ValueError` without a key: S3
    sends no empty ones."""
    if not keys:
        raise ValueError("name at least one key: S3 sends no notification without a record")
    return json.dumps({"Records": [_s3_record(key, bucket, event, size) for key in keys]})


def _s3_record(key: str, bucket: str, event: str, size: int) -> dict[str, Any]:
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": REGION,
        "eventTime": TIME,
        "eventName": event,
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
            "object": {"key": quote_plus(key, safe="/"), "size": size},
        },
    }


def _sns_attribute(value: str | int | float | bytes) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"Type": "Binary", "Value": base64.b64encode(value).decode()}
    return {"Type": "String" if isinstance(value, str) else "Number", "Value": str(value)}


def _text(payload: object) -> str:
    return payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
