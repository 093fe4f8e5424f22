"""The gRPC services, one file each, and what happens around every call. They translate, and hold no logic."""
