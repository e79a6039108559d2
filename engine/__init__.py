"""The engine: runs, their storage, their safety and their fair share. The rooms are drawn in docs/architecture.md."""
