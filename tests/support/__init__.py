"""What tests stand on: servers, fleets, launchers and clusters, real or scripted."""
