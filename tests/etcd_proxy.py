"""`etcd grpc-proxy` before an etcd, as a child process."""

import socket

from svc.devstack.child import Child, free_ports
from svc.devstack.stack import Etcd, etcd_binary


class GrpcProxy(Child):
    """What etcd offers to take the load of many clients off its members: it shares watches and leases among them."""

    name = "grpc-proxy"

    def __init__(self, etcd: Etcd) -> None:
        super().__init__()
        self._etcd = etcd

    @property
    def endpoint(self) -> str:
        """`host:port`, as in `ETCD_ENDPOINTS`."""
        return f"127.0.0.1:{self.port}"

    def _program(self) -> list[str]:
        self._ports = self._ports or free_ports(1)
        (self.port,) = self._ports
        return [
            etcd_binary("etcd"),
            "grpc-proxy",
            "start",
            f"--endpoints={self._etcd.endpoint}",
            f"--listen-addr={self.endpoint}",
            f"--data-dir={self._directory / 'data'}",
        ]

    def _ready(self, lines: list[str]) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
