"""What `ray start` calls before it starts the embedded head; it must import nothing of the server."""

from __future__ import annotations

from typing import Any


def without_client_server(ray_params: Any, is_head: bool) -> None:
    """Start no Ray client server, which nobody here uses; `ray start` has no option for that."""
    ray_params.ray_client_server_port = None
