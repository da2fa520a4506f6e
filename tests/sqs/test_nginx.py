"""The direct road through a real nginx with TLS, before moto: what a load balancer or a proxy does to connections."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from svc.devstack.stack import Etcd, Moto
from tests.live import stand
from tests.sqs.test_tls import certificate

pytestmark = pytest.mark.slow

CONFIGURATION = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 7;       # then it closes: a load balancer does, too, at a moment of its own choice
  keepalive_timeout 2s;
  gzip on;
  gzip_proxied any;
  gzip_types *;
  gzip_min_length 1;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    location / {{
      proxy_pass {moto};
      proxy_set_header Host $http_host;
      proxy_buffering off;
    }}
  }}
}}
"""


@pytest.fixture
def nginx(moto: Moto, tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    """Its URL, the authority to trust, and its access log."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("nginx is missing: apt-get install nginx-light")
        pytest.skip("no nginx here: apt-get install nginx-light")
    authority, _ = certificate(tmp_path, "localhost")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=tmp_path, port=port, certificate=authority, key=authority.with_suffix(".key"), moto=moto.url
        )
    )
    with subprocess.Popen([program, "-c", str(configuration), "-e", str(tmp_path / "error.log")]) as process:
        try:
            while process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    os.sched_yield()
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            yield f"https://localhost:{port}", authority, tmp_path / "access.log"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


async def test_messages_go_through_and_a_drain_strands_none(
    nginx: tuple[str, Path, Path], moto: Moto, etcd: Etcd, queue_name: str, key_prefix: str, tmp_path: Path
) -> None:
    url, authority, log = nginx
    record = tmp_path / "record"
    async with stand(moto, etcd.endpoint, queue_name, key_prefix + "m", record, WORK_SECONDS="0.1") as place:
        await place.send([f"message {number}" for number in range(200)])
        service = await place.start(AWS_ENDPOINT=url, AWS_CA_BUNDLE=str(authority), SQS_TRANSPORT="direct")
        await place.until(lambda: len(place.succeeded()) >= 50)
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0
        done = len(place.succeeded())
        assert await place.depth() == (200 - done, 0)

        again = await place.start(AWS_ENDPOINT=url, AWS_CA_BUNDLE=str(authority), SQS_TRANSPORT="direct")
        await place.until(lambda: len(place.succeeded()) >= 200)
        # Idle for longer than nginx keeps a connection, and it goes on at once.
        await trio.sleep(3)
        await place.send(["after a rest"])
        await place.until(lambda: "after a rest" in place.succeeded(), within=5)
        again.signal(signal.SIGTERM)
        assert await again.exit_code() == 0
        assert await place.depth() == (0, 0)
    assert len(place.succeeded()) == len(set(place.succeeded())) == 201
    lines = log.read_text().splitlines()
    assert len(lines) > 40
    assert {line.split('"')[2].split()[0] for line in lines} == {"200"}
