"""Who is in the swarm: paths and nicknames, reserved before an agent exists, and the totals that refuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from core.agents.nicknames import nicknames
from core.domain.limits import LimitError, Limits
from core.domain.paths import PathError, child_path, depth, resolve


class UnknownAgent(LookupError):
    """A target that names no agent of this swarm; the message lists what exists."""


class Registry:
    """Open agents by path. Reservation comes first and is rolled back if the agent cannot be registered."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._threads: dict[str, str] = {}
        """path → thread id; "" while reserved."""
        self._paths: dict[str, str] = {}
        self._names = nicknames()
        self._worn: frozenset[str] = frozenset()
        """Nicknames that were given before this registry."""

    def __len__(self) -> int:
        return len(self._threads)

    def reserve(self, parent: str | None, name: str) -> tuple[str, str]:
        """A free path below `parent` (None: the root itself) and a nickname.

        Raises PathError for a bad or taken name, LimitError for a total that is full.
        """
        path = "/root" if parent is None else child_path(parent, name)
        if path in self._threads:
            raise PathError(f"the agent path {path} is taken; choose another task_name")
        self._check([path])
        self._threads[path] = ""
        return path, "root" if parent is None else self._name()

    def reserve_again(self, paths: Sequence[str]) -> None:
        """The paths of closed agents that come back, all or none of them. Raises as `reserve` does."""
        for path in paths:
            if path in self._threads:
                raise PathError(f"the agent path {path} belongs to another agent now; close that one first")
        self._check(paths)
        self._threads.update(dict.fromkeys(paths, ""))

    def _check(self, paths: Sequence[str]) -> None:
        """Raises LimitError if a total leaves no room for agents at these paths."""
        limits, taken = self.limits, len(self._threads)
        for path in paths:
            if depth(path) > limits.max_depth:
                held = f"{path} would be at depth {depth(path)}; do it yourself"
                raise LimitError("max_depth", limits.max_depth, held)
        if taken + len(paths) > limits.max_agents:
            more = f", and {len(paths)} would come" if len(paths) > 1 else ""
            held = f"{taken} agents are open{more}: {self._listing()}; close some first"
            raise LimitError("max_agents", limits.max_agents, held)

    def _name(self) -> str:
        return next(name for name in self._names if name not in self._worn)

    def restore(self, open_agents: Mapping[str, str], worn: Iterable[str]) -> None:
        """Begin where another registry ended: open agents (path → thread id), and nicknames that were given,
        also to closed ones. No limit refuses what is there already."""
        self._worn = frozenset(worn)
        for path, thread in open_agents.items():
            self.commit(path, thread)

    def commit(self, path: str, thread: str) -> None:
        self._threads[path] = thread
        self._paths[thread] = path

    def release(self, path: str) -> None:
        """Give a path back: a spawn that failed, or a closed agent."""
        thread = self._threads.pop(path, "")
        self._paths.pop(thread, None)

    def find(self, caller: str, target: str) -> str:
        """The thread id that `target` (thread id, absolute or relative path) means for the agent at `caller`.

        Raises UnknownAgent or PathError.
        """
        if target in self._paths:
            return target
        path = resolve(caller, target)
        thread = self._threads.get(path)
        if not thread:
            raise UnknownAgent(f"no open agent has the path {path}; open agents: {self._listing()}")
        return thread

    def _listing(self) -> str:
        shown = sorted(path for path, thread in self._threads.items() if thread)
        more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
        return ", ".join(shown[:20]) + more
