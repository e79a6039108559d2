"""The HTTP API: routers over the engine's services, and nothing of their rules. See docs/api.md."""
