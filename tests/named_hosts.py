"""Runs a command with a DNS of the test's own: names of hosts that lead to this machine, and no others.

    NAMED_HOSTS=sqs.eu-central-1.amazonaws.com=4443 python -m tests.named_hosts python -m svc run

What the names are looked up with (`getaddrinfo`, on every road to AWS) answers 127.0.0.1 and the port, whatever port was asked
for; for a name that is not listed it fails, as where there is no network.
"""

import os
import socket
import sys
from typing import Any

_look_up = socket.getaddrinfo


def main() -> None:
    ports = dict(one.split("=") for one in os.environ["NAMED_HOSTS"].split(","))

    def named(host: Any, port: Any, *more: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name in ports:
            return _look_up("127.0.0.1", int(ports[name]), *more, **named)
        if name is None or name[:1].isdigit() or ":" in name or name == "localhost":
            return _look_up(host, port, *more, **named)
        raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {name}")

    socket.getaddrinfo = named
    sys.argv = ["svc", *sys.argv[sys.argv.index("svc") + 1 :]]
    from svc.__main__ import main as svc

    svc()


if __name__ == "__main__":
    main()
