from __future__ import annotations

import pytest

from core.agents.nicknames import NAMES, nicknames
from core.agents.registry import Registry, UnknownAgent
from core.domain.limits import LimitError, Limits
from core.domain.paths import PathError
from core.safety.text import ordinal


def registered(registry: Registry, parent: str | None, name: str) -> str:
    path, _ = registry.reserve(parent, name)
    registry.commit(path, f"thread:{path}")
    return path


def test_targets_resolve_downwards_absolutely_and_by_id() -> None:
    registry = Registry(Limits())
    root = registered(registry, None, "root")
    audit = registered(registry, root, "audit")
    registered(registry, audit, "tests")
    assert registry.find("/root", "audit/tests") == "thread:/root/audit/tests"
    assert registry.find("/root/audit", "tests") == "thread:/root/audit/tests"
    assert registry.find("/root/audit", "/root") == "thread:/root"
    assert registry.find("/root/audit", "thread:/root/audit") == "thread:/root/audit"
    with pytest.raises(UnknownAgent, match=r"/root/audit/audit.*open agents: /root, /root/audit"):
        registry.find("/root/audit", "audit")


def test_a_taken_path_and_bad_names_are_refused() -> None:
    registry = Registry(Limits())
    registered(registry, None, "root")
    registered(registry, "/root", "a")
    with pytest.raises(PathError, match="taken"):
        registry.reserve("/root", "a")
    for name in ("", "Root", "a b", "a/b", "..", "root", "ä"):
        with pytest.raises(PathError):
            registry.reserve("/root", name)


def test_a_failed_spawn_gives_its_reservation_back() -> None:
    registry = Registry(Limits(max_agents=2))
    registered(registry, None, "root")
    path, _ = registry.reserve("/root", "a")
    with pytest.raises(UnknownAgent):
        registry.find("/root", "a")
    registry.release(path)
    assert len(registry) == 1
    registered(registry, "/root", "a")


def test_each_total_refuses_with_its_name_and_value() -> None:
    registry = Registry(Limits(max_agents=3, max_depth=1))
    registered(registry, None, "root")
    registered(registry, "/root", "a")
    with pytest.raises(LimitError, match=r"max_depth = 1; .*/root/a/b"):
        registry.reserve("/root/a", "b")
    registered(registry, "/root", "b")
    with pytest.raises(LimitError, match=r"max_agents = 3; 3 agents are open"):
        registry.reserve("/root", "c")
    registry.release("/root/b")
    registered(registry, "/root", "c")


def test_nicknames_never_repeat() -> None:
    assert len(set(NAMES)) == len(NAMES)
    source = nicknames()
    drawn = [next(source) for _ in range(3 * len(NAMES))]
    assert len(set(drawn)) == len(drawn)
    assert drawn[len(NAMES)] == f"{NAMES[0]} the 2nd"
    assert [ordinal(n) for n in (3, 11, 12, 13, 21, 22, 111)] == [
        "3rd",
        "11th",
        "12th",
        "13th",
        "21st",
        "22nd",
        "111th",
    ]
