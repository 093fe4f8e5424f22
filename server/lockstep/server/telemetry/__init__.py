"""What Prometheus is told: what has been counted (counters.py), and how things stand at a scrape (the collectors)."""

from lockstep.server.telemetry.counters import KEPT_S, Telemetry, package_version

__all__ = ["KEPT_S", "Telemetry", "package_version"]
