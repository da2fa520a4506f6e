"""The door to etcd: the one place that speaks gRPC.

Lives here: HTTP/2 (by h2) and gRPC on it, etcd's messages (by protobuf), connections and what their errors mean, the watch on
the maintenance key, this instance's registration, and what operators do with the key and the fleet. Never here: what a value
means, or when a fleet has drained (`svc.maintenance`).
Journey: a switch begins here (`watcher.py`) and its answer ends here (`registration.py`).
Begin reading at `watcher.py`; from below it is `http2.py`, `grpc_calls.py`, `connection.py`. The names below are the modules that
other suites may use.
"""

__all__ = ["errors", "fleet", "keys", "link", "registration", "registration_thread", "watcher"]
