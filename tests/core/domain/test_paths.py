from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain import paths

segments = st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True).filter(lambda name: name != "root")
agents = st.lists(segments, max_size=5).map(lambda names: "/".join(["/root", *names]))


@given(agents, segments)
def test_a_child_knows_its_parent(parent: str, name: str) -> None:
    child = paths.child_path(parent, name)
    assert paths.parent_of(child) == parent
    assert paths.leaf(child) == name
    assert paths.depth(child) == paths.depth(parent) + 1
    assert paths.is_within(child, parent)
    assert not paths.is_within(parent, child)


@given(agents, st.lists(segments, min_size=1, max_size=3))
def test_a_relative_target_lies_below_the_caller(caller: str, names: list[str]) -> None:
    target = "/".join(names)
    assert paths.resolve(caller, target) == f"{caller}/{target}"
    assert paths.resolve(caller, caller) == caller


@given(st.text(max_size=30))
def test_whatever_passes_is_well_formed(text: str) -> None:
    try:
        path = paths.check_path(text)
    except paths.PathError:
        return
    assert path == text
    assert path == "/root" or path.startswith("/root/")
    assert all(set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789_") for part in path.split("/"))


@given(agents, segments)
def test_a_longer_name_is_not_within_a_shorter_one(parent: str, name: str) -> None:
    assert not paths.is_within(f"{parent}/{name}x", f"{parent}/{name}")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("", "must not be empty"),
        ("root", "reserved"),
        ("..", "reserved"),
        ("a/b", "must not contain"),
        ("Äpfel", "only a-z"),
        ("two words", "only a-z"),
        ("name\n", "only a-z"),
    ],
)
def test_bad_names_are_refused_with_the_reason(bad: str, says: str) -> None:
    with pytest.raises(paths.PathError, match=says):
        paths.check_segment(bad)


@pytest.mark.parametrize("bad", ["", "root", "/", "/root/", "/other/a", "/root//a", "/rooted", "/root/root"])
def test_bad_paths_are_refused(bad: str) -> None:
    with pytest.raises(paths.PathError):
        paths.check_path(bad)


@pytest.mark.parametrize("target", ["", "  ", "..", "../b", "/elsewhere"])
def test_a_target_never_leads_out_of_the_tree(target: str) -> None:
    with pytest.raises(paths.PathError):
        paths.resolve("/root/a", target)
