"""Actions: what steps can do to the outside world, and the one guarded client by which they do it.

`build` makes the registry that `tasks.py` hands to the executor. Importing this package opens nothing.
"""

from actions.registry import PluginProblem, Registry, build

__all__ = ["PluginProblem", "Registry", "build"]
