"""An etcd cluster of several members on this machine, each a child process that can be killed, frozen and brought back.

with EtcdCluster(3) as cluster:
    cluster.endpoints            # as in ETCD_ENDPOINTS
    cluster.leader().kill()
"""

import json
import urllib.error
import urllib.request
from types import TracebackType
from typing import Self

from svc.devstack.child import free_ports, start_all
from svc.devstack.stack import Etcd


class Member(Etcd):
    """One member: `Etcd` with peers. Its ports are picked before it starts, because its peers have to know them."""

    def __init__(self, number: int) -> None:
        super().__init__(
            # Slower than the single member's: members on a busy machine must not take each other for dead.
            "--heartbeat-interval=100",
            "--election-timeout=1000",
        )
        self.member = f"m{number}"
        self._ports = free_ports(3)
        self._served = True  # its peers know its ports: it keeps them
        self.peers: list[Member] = []

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[1]}"

    def _program(self) -> list[str]:
        alone = super()._program()
        cluster = ",".join(f"{peer.member}={peer.peer_url}" for peer in self.peers)
        kept = [flag for flag in alone if not flag.startswith(("--name=", "--initial-cluster="))]
        return [*kept, f"--name={self.member}", f"--initial-cluster={cluster}"]

    def is_leader(self) -> bool:
        """Whether it says so itself. False when it does not answer."""
        request = urllib.request.Request(
            f"{self.url}/v3/maintenance/status", data=b"{}", headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=2) as answer:
                status = json.load(answer)
        except (OSError, urllib.error.URLError):
            return False
        return bool(status.get("leader")) and status["leader"] == status["header"]["member_id"]


class EtcdCluster:
    """Members that know each other. A plain context manager; leaves no process behind."""

    def __init__(self, size: int) -> None:
        self.members = [Member(number) for number in range(size)]
        for member in self.members:
            member.peers = self.members

    @property
    def endpoints(self) -> str:
        return ",".join(f"127.0.0.1:{member._ports[0]}" for member in self.members)

    def leader(self) -> Member:
        """The member that leads now. Raises LookupError while there is none."""
        for member in self.members:
            if member.running and member.is_leader():
                return member
        raise LookupError("no member of the cluster says that it leads")

    def __enter__(self) -> Self:
        start_all(*self.members)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for member in self.members:
            member.stop()
