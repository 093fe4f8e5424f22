"""What Prometheus is told: what has been counted (counters.py), and how things stand at a scrape (the collectors)."""

from lockstep.server.telemetry.counters import Telemetry, package_version

__all__ = ["Telemetry", "package_version"]
