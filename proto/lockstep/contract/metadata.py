"""Keys of the metadata of calls."""

from __future__ import annotations

LAUNCHER_TOKEN = "lockstep-launcher-token"
"""The launcher's right to speak, of ConnectLauncher."""
ATTEMPT_TOKEN = "lockstep-attempt-token"
"""The right of the workers of one attempt to report."""
NODE_TOKEN = "lockstep-node-token"
"""The right of a node's agent to report."""
