"""One answer of each kind, for the API's description. A test holds them to the shape of real answers, and to their schemas."""

from typing import Any

NOW = "2026-11-25T02:15:00.123Z"
QUEUE_URL = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders"
MESSAGE_ID = "5fea7756-0ea4-451a-a703-a558b933e274"

DRAIN: dict[str, Any] = {
    "cause": "maintenance",
    "outcome": "drained",
    "began": "2026-11-25T02:14:41.020Z",
    "ended": "2026-11-25T02:14:52.415Z",
    "seconds": 11.395,
    "deadline": "2026-11-25T02:15:11.020Z",
    "quiet": "2026-11-25T02:14:49.702Z",
    "error": None,
    "http": {"under_way": 0, "unfinished": 0},
    "sqs": {
        "in_flight": 12,
        "receives_outstanding": 1,
        "receives_brought": 2,
        "receives_unlanded": 0,
        "completed": 11,
        "failed": 1,
        "released": 2,
        "rejected": 0,
        "lost": 0,
        "lost_ids": [],
        "lost_ids_count": 0,
        "timed_out": [],
        "timed_out_count": 0,
        "stubborn": [],
        "stubborn_count": 0,
        "threads": {},
        "threads_count": 0,
        "next_receive_dead_letters": [],
        "next_receive_dead_letters_count": 0,
        "last_receives_returned": [],
        "last_receives_returned_count": 0,
        "unsettled": [],
        "unsettled_count": 0,
        "deferred": {MESSAGE_ID: 17.2},
        "deferred_count": 1,
    },
}

HEALTH: dict[str, Any] = {
    "status": "healthy",
    "maintenance": False,
    "handlers": {"http": True, "sqs": True},
    "fleet": True,
    "etcd": {
        "connected": True,
        "since": "2026-11-25T01:58:03.331Z",
        "endpoint": "etcd:2379",
        "key": "/maintenance/sqs-service",
        "revision": 7,
        "error": None,
        "ignored_value": None,
    },
    "maintenance_file": None,
    "switch": {"on": False, "reason": None, "until": None, "by": None, "keys": []},
    "drain": None,
    "queue_url": QUEUE_URL,
    "queue_error": None,
    "queue_error_since": None,
    "breaker": {
        "state": "closed",
        "since": None,
        "until": None,
        "runs": 214,
        "failures": 1,
        "opened": 0,
        "reason": None,
    },
    "threads": {},
    "timestamp": NOW,
}

UNHEALTHY: dict[str, Any] = HEALTH | {
    "status": "unhealthy",
    "handlers": {"http": True, "sqs": False},
    "drain": DRAIN,
    "queue_error": "receiving: SQS is out of reach (connection refused); see AWS_ENDPOINT",
    "queue_error_since": "2026-11-25T02:09:12.008Z",
}

LIVE: dict[str, Any] = {"status": "live", "timestamp": NOW}

LOG_LEVEL: dict[str, Any] = {"level": "debug", "configured": "info", "timestamp": NOW}

READY: dict[str, Any] = {"status": "ready", "timestamp": NOW}

SENT: dict[str, Any] = {
    "message_id": MESSAGE_ID,
    "message": "Hello from SQS!",
    "queue_url": QUEUE_URL,
    "timestamp": NOW,
}

SEND: dict[str, Any] = {"message": "Hello from SQS!"}

STATS: dict[str, Any] = {
    "maintenance": False,
    "timestamp": NOW,
    "handlers": ["http", "sqs"],
    "sqs": {
        "handler_name": "sqs",
        "handler_state": "running",
        "queue_url": QUEUE_URL,
        "in_maintenance": False,
        "messages_received": 1208,
        "messages_processed": 1190,
        "messages_failed": 3,
        "messages_in_flight": 12,
        "messages_released": 2,
        "messages_rejected": 1,
        "messages_lost": 0,
        "messages_duplicate": 0,
        "last_message_time": "2026-11-25T02:14:59.870Z",
        "drain_timeout": 30.0,
        "receives_outstanding": 1,
        "queue_error": None,
        "queue_error_since": None,
        "breaker": {
            "state": "closed",
            "since": None,
            "until": None,
            "runs": 214,
            "failures": 1,
            "opened": 0,
            "reason": None,
        },
        "threads": {},
        "recent_errors": [
            {"timestamp": "2026-11-25T02:09:12.008Z", "message_id": MESSAGE_ID, "error": "ValueError: no such order"}
        ],
        "drain": None,
    },
}

STATS_IN_MAINTENANCE: dict[str, Any] = {
    "error": "Service Unavailable",
    "message": "the service is in maintenance (reason: database upgrade; by: ops; until: 2026-11-25T03:00:00Z)",
    "code": 503,
    "reason": "database upgrade",
    "until": "2026-11-25T03:00:00Z",
    "by": "ops",
    **STATS,
    "maintenance": True,
    "sqs": STATS["sqs"]
    | {
        "handler_state": "draining",
        "in_maintenance": True,
        "messages_in_flight": 4,
        "messages_processed": 1198,
        "drain": DRAIN | {"outcome": "running", "ended": None},
    },
}

QUEUE_INFO: dict[str, Any] = {
    "queue_url": QUEUE_URL,
    "attributes": {
        "QueueArn": "arn:aws:sqs:eu-central-1:123456789012:orders",
        "ApproximateNumberOfMessages": "340",
        "ApproximateNumberOfMessagesNotVisible": "12",
        "ApproximateNumberOfMessagesDelayed": "0",
        "DelaySeconds": "0",
        "MaximumMessageSize": "1048576",
        "RedrivePolicy": '{"deadLetterTargetArn": "arn:aws:sqs:eu-central-1:123456789012:orders-dlq", "maxReceiveCount": 5}',
    },
    "dead_letter_queue": {
        "url": "https://sqs.eu-central-1.amazonaws.com/123456789012/orders-dlq",
        "arn": "arn:aws:sqs:eu-central-1:123456789012:orders-dlq",
        "attributes": {
            "ApproximateNumberOfMessages": "3",
            "QueueArn": "arn:aws:sqs:eu-central-1:123456789012:orders-dlq",
        },
    },
    "dead_letter_queue_error": None,
    "timestamp": NOW,
}

ORDER: dict[str, Any] = {"reason": "database upgrade", "by": "ops", "for": "30m"}

OBEYED: dict[str, Any] = {
    "maintenance": True,
    "key": "/maintenance/sqs-service",
    "instance": None,
    "revision": 57,
    "timestamp": NOW,
}

FLEET: dict[str, Any] = {
    "fleet": True,
    "key": "/maintenance/sqs-service",
    "file": None,
    "maintenance": True,
    "reason": "database upgrade",
    "by": "ops",
    "until": "2026-11-25T03:00:00Z",
    "ignored_value": None,
    "expires_in": 2680.0,
    "revision": 57,
    "quiet": True,
    "drained": True,
    "vanished": [],
    "only": [],
    "instances": [
        {
            "id": "orders-1-4711-9f3a",
            "phase": "drained",
            "in_flight": 0,
            "quiet": True,
            "receives": 0,
            "revision": 57,
            "own_revision": 41,
            "keys": ["all"],
            "host": "orders-1",
            "pid": 4711,
            "version": "0.1.0",
            "started": "2026-11-24T08:00:12Z",
            "queue": QUEUE_URL,
            "drain": {
                "cause": "maintenance",
                "outcome": "drained",
                "seconds": 11.395,
                "in_flight": 12,
                "completed": 11,
                "failed": 1,
                "released": 2,
                "rejected": 0,
                "lost": 0,
                "timed_out": 0,
                "unsettled": 0,
                "last_receives_returned": 0,
            },
            "current": True,
        }
    ],
    "timestamp": NOW,
}
