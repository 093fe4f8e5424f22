"""A server with a real Ray on a machine that others use, too."""

import ipaddress
import json
from pathlib import Path

import psutil

from lockstep.client import Client
from tests.integration.conftest import Server, quick


def test_an_embedded_ray_listens_on_the_loopback_alone_and_has_a_folder_of_its_own(
    server: Server, client: Client
) -> None:
    client.submit_job(quick()).wait()
    listening = {
        (process.name(), ipaddress.ip_address(connection.laddr.ip.removeprefix("::ffff:")))
        for process in server.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert [(name, ip) for name, ip in listening if not ip.is_loopback] == []
    assert not server.processes("ray.util.client.server")
    record = json.loads((server.data_dir / "ray.json").read_text())
    assert Path(record["temp_dir"]).parent.stat().st_mode & 0o777 == 0o700
