"""Pictures that calls return: the model sees them, journals and feeds hold their names only."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import core.agents.images
import core.engine.hosting
import core.scripted.check
from core.agents.history import History
from core.agents.images import Images, has_marks
from core.agents.swarm import Swarm
from core.agents.tools import control_tools
from core.domain import events as e
from core.domain.commands import GetTranscript, SendInput
from core.models.types import ModelError
from core.store.blobs import make_blob
from core.store.connection import FILE_NAME
from core.store.errors import StoreError
from core.tools.base import Tool, ToolContext, ToolImage, ToolOutput
from core.view.transcript import Transcript
from tests.core.agents.scenarios import call, step
from tests.core.agents.stage import Number, Stage
from tests.core.agents.test_mcp import fake, mcp
from tests.core.agents.test_residency import Inside, say, turns
from tests.core.agents.test_resume import Later
from tests.core.agents.test_tools import spawn, wait
from tests.core.store.tools import new_swarm, opened, query

PNG = b"\x89PNG\r\n\x1a\n"


class Camera(Tool):
    """Returns picture number n, of `size` bytes; `count` of them."""

    name = "look"
    description = "looks"
    Args = Number

    def __init__(self, size: int = 200, count: int = 1) -> None:
        self.size = size
        self.count = count

    def picture(self, n: int) -> bytes:
        return PNG + str(n).encode().rjust(self.size - len(PNG), b".")

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        pictures = [self.picture(args.n + i) for i in range(self.count)]
        images = [ToolImage(media_type="image/png", data=base64.b64encode(p).decode()) for p in pictures]
        return ToolOutput(text=f"this is {args.n}", images=tuple(images))


class Liar(Camera):
    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        good = base64.b64encode(self.picture(1)).decode()
        images = (ToolImage(media_type="image/png", data="%%%"), ToolImage(media_type="image/gif", data=good))
        return ToolOutput(text="two", images=images)


def url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def shown(body: dict[str, Any]) -> list[Any]:
    """What the calls of a request's history gave: texts, and the addresses of images."""
    found: list[Any] = []
    for item in body["input"]:
        if item["type"] == "function_call_output":
            output = item["output"]
            parts = [output] if isinstance(output, str) else [p.get("text") or p["image_url"] for p in output]
            found.append(parts)
    return found


@pytest.fixture
def camera() -> Camera:
    return Camera()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, camera: Camera) -> Inside:
    return Inside(tmp_path, monkeypatch, [camera])


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, camera: Camera) -> Later:
    def tools(swarm: Swarm) -> list[Tool]:
        return [*control_tools(swarm), camera]

    monkeypatch.setattr(core.engine.hosting, "control_tools", tools)
    return Later(tmp_path, monkeypatch)


# --- to the model ----------------------------------------------------------------------------------------


async def test_a_call_that_returned_an_image_shows_it_to_the_model(stage: Stage, camera: Camera) -> None:
    agents = {"/root": [step(call("look", n=7)), step(call("look", n=7), call("look", n=8))]}
    async with stage.play(agents) as watched:
        await watched.quiet()
    seven, eight = camera.picture(7), camera.picture(8)
    assert shown(stage.bodies()[1]) == [["this is 7", url(seven)]]
    assert shown(stage.bodies()[-1]) == [["this is 7", url(seven)]] * 2 + [["this is 8", url(eight)]]
    [part] = [p for i in stage.bodies()[1]["input"] if "output" in i for p in i["output"] if "image_url" in p]
    assert part == {"type": "input_image", "image_url": url(seven), "detail": "auto"}
    [first, again, other] = watched.of(e.ToolEnded)
    name = hashlib.sha256(seven).hexdigest()
    assert first.images == again.images == (e.Image(blob=name, media_type="image/png", size=len(seven)),)
    assert other.images[0].blob != name
    # The same picture is kept once, as it is.
    kept = query(stage.folder / "home", "SELECT media_type, data FROM blobs ORDER BY data")
    assert kept == [("image/png", seven), ("image/png", eight)]


async def test_four_images_of_four_megabytes_stay_out_of_the_journal_and_the_feed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = Camera(size=4 * 1024 * 1024, count=4)
    stage = Stage(tmp_path, monkeypatch, [camera])
    async with stage.play({"/root": [step(call("look", n=1)), step(text="seen")]}) as watched:
        await watched.quiet()
        assert watched.at("/root").status == "completed"
        usage = watched.at("/root").tokens
    assert shown(stage.bodies()[-1]) == [["this is 1", *(url(camera.picture(n)) for n in (1, 2, 3, 4))]]
    home = tmp_path / "home"
    assert query(home, "SELECT max(length(body)) < 4000 FROM events") == [(1,)]
    for column in ("arguments", "result_content"):
        assert query(home, f"SELECT max(length({column})) < 4000 FROM tool_calls") == [(1,)]
    assert query(home, "SELECT max(length(text)) < 4000 FROM tool_result_events") == [(1,)]
    assert query(home, "SELECT count(*), sum(length(data)) FROM blobs") == [(4, 4 * camera.size)]
    assert max(len(e.encode(event)) for event in watched.events) < 4000
    # An image is not counted by its bytes.
    assert usage is not None
    assert usage.total < 100_000


async def test_what_is_no_picture_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path, monkeypatch, [Liar()])
    async with stage.play({"/root": [step(call("look")), step(text="seen")]}) as watched:
        await watched.quiet()
    [ended] = watched.of(e.ToolEnded)
    assert (ended.status, len(ended.images)) == ("ok", 1)
    [[text, picture]] = shown(stage.bodies()[-1])
    assert text == "two\n[image png: not base64, left out]"
    assert picture.startswith("data:image/gif;base64,")


# --- the same again --------------------------------------------------------------------------------------


async def test_after_its_history_was_flushed_an_agent_sends_the_same_images(stage: Inside) -> None:
    agents = {
        "/root": [step(spawn("a"), spawn("b")), step(wait("a", "b", mode="all")), step(text="over")],
        "/root/a": [step(call("look", n=1)), step(text="one"), step(text="two")],
        "/root/b": [step(text="b")],
    }
    async with stage.play(agents, limits={"max_resident": 1}) as watched:
        await watched.quiet()
        assert "/root/a" not in stage.resident()
        stage.swarm.images._cache.clear()
        await say(watched, "/root/a", "more")
        await turns(watched, "/root/a", 2)
    _, before, after = stage.bodies("/root/a")
    assert len(shown(before)[0]) == 2
    same = json.dumps(before["input"]).encode()
    assert json.dumps(after["input"][: len(before["input"])]).encode() == same
    assert after["instructions"] == before["instructions"]


async def test_another_engine_sends_the_same_images(later: Later, camera: Camera) -> None:
    played = {"/root": [step(call("look", n=1)), step(text="seen"), step(text="again")]}
    async with later.first(played) as (one, swarm, root):
        await one.quiet(swarm)
        before = later.bodies("/root")[-1]
        later.dies()
    async with later.second(played, swarm) as two:
        await two.send(SendInput(swarm=swarm, thread=root, text="and now?"))
        await two.until(swarm, lambda s: s.agents[root].turns == 2 and s.quiet())
    [after] = later.bodies("/root")
    assert shown(after) == [["this is 1", url(camera.picture(1))]]
    kept = len(before["input"])
    assert json.dumps(after["input"][:kept]) == json.dumps(before["input"])
    assert after["instructions"] == before["instructions"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("DELETE FROM blobs", "[image png 200 B: no longer in the store]"),
        ("UPDATE blobs SET data = x'00'", "[image png 200 B: damaged in the store]"),
        ("UPDATE blobs SET data = 'text'", "[image png 200 B: damaged in the store]"),
    ],
)
async def test_an_image_that_is_gone_becomes_a_line(later: Later, spoil: str, said: str) -> None:
    steps = [
        step(call("look")),
        step(text="seen"),
        step(text="again"),
        step(call("look")),
        step(text="mended"),
    ]
    async with later.first({"/root": steps}) as (one, swarm, root):
        await one.quiet(swarm)
        later.dies()
    with sqlite3.connect(later.folder / "left" / FILE_NAME) as db:
        db.execute(spoil)
    db.close()
    async with later.second({"/root": steps}, swarm) as two:
        await two.send(SendInput(swarm=swarm, thread=root, text="and now?"))
        await two.until(swarm, lambda s: s.agents[root].turns == 2 and s.quiet())
        assert shown(later.bodies("/root")[0]) == [[f"this is 0\n{said}"]]
        # The same picture coming again mends it, for the earlier call too.
        picture = url(Camera().picture(0))
        await two.send(SendInput(swarm=swarm, thread=root, text="look again"))
        await two.until(swarm, lambda s: s.agents[root].turns == 3 and s.quiet())
        assert shown(later.bodies("/root")[-1]) == [["this is 0", picture]] * 2


async def test_a_fork_takes_no_images_over(stage: Stage) -> None:
    agents = {
        "/root": [step(call("look")), step(spawn("a", fork_turns="all")), step(wait("a")), step(text="over")],
        "/root/a": [step(call("look", n=2)), step(text="seen")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
        assert watched.at("/root/a").status_message == "seen"
    first, second = stage.bodies("/root/a")
    assert shown(first) == []
    assert first["input"][0]["content"][0]["text"] == "go"
    assert [len(parts) for parts in shown(second)] == [2]


# --- servers that take none ------------------------------------------------------------------------------


async def test_a_server_that_takes_no_images_does_not_stop_the_agent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core.scripted.check, "is_image", lambda address: False)
    agents = {"/root": [step(call("look")), step(call("look", n=2)), step(text="over")]}
    async with stage.play(agents) as watched:
        await watched.quiet()
        assert watched.at("/root").status_message == "over"
    told = "[image png 200 B: left out, the model takes no images]"
    assert shown(stage.bodies()[-1]) == [[f"this is 0\n{told}"], [f"this is 2\n{told}"]]
    # It is found out once, and said once.
    assert [entry.status for entry in stage.log] == [200, 400, 200, 200]
    [note] = [n.text for n in watched.of(e.Notice) if "images" in n.text]
    assert "is sent none from now on" in note


class Together(Camera):
    """All calls end at once."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.barrier = asyncio.Barrier(count)

    async def run(self, args: Any, ctx: ToolContext) -> ToolOutput:
        await self.barrier.wait()
        return await super().run(args, ctx)


async def test_agents_that_find_it_out_at_once_all_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core.scripted.check, "is_image", lambda address: False)
    names = [f"a{n}" for n in range(6)]
    stage = Stage(tmp_path, monkeypatch, [Together(len(names))])
    agents = {
        "/root": [step(*map(spawn, names)), step(wait(*names, mode="all")), step(text="over")],
        "/root/*": [step(call("look")), step(text="seen")],
    }
    async with stage.play(agents) as watched:
        await watched.quiet()
        assert [watched.at(f"/root/{name}").status_message for name in names] == ["seen"] * 6
    assert [entry.status for entry in stage.log].count(400) > 1


async def test_a_refusal_that_images_did_not_cause_is_what_it_was(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = core.scripted.check.read_request
    refused = []

    def refuses_twice(raw: bytes) -> dict[str, Any]:
        body = read(raw)
        if "output" in body["input"][-1] and len(refused) < 2:
            refused.append(shown(body))
            raise core.scripted.check.Refused("no such tier")
        return body

    monkeypatch.setattr(core.scripted.check, "read_request", refuses_twice)
    async with stage.play({"/root": [step(call("look")), step(text="over")]}) as watched:
        await watched.until(lambda s: s.agents[watched.root].status == "errored")
        assert "no such tier" in watched.at("/root").status_message
        assert [len(calls[0]) for calls in refused] == [2, 1]
        await say(watched, "/root", "go on")
        await turns(watched, "/root", 2)
        assert watched.at("/root").status_message == "over"
    assert len(shown(stage.bodies()[-1])[0]) == 2  # with its image again
    assert not [n for n in watched.of(e.Notice) if "image" in n.text]


def test_only_refusals_are_suspected() -> None:
    assert Images.suspects(ModelError("400", kind="bad_request"))
    assert Images.suspects(ModelError("500: image input is not supported", kind="server", status=500))
    assert not Images.suspects(ModelError("500: internal error", kind="server", status=500))
    assert not Images.suspects(ModelError("no key", kind="auth", status=401))


# --- how much --------------------------------------------------------------------------------------------


def history_of(images: list[e.Image]) -> History:
    history = History("/root")
    for number, image in enumerate(images):
        history.add(e.ToolCalled(call=f"c{number}", name="look", arguments="{}"))
        history.add(e.ToolEnded(call=f"c{number}", output="text", images=(image,)))
    return history


async def test_only_the_newest_images_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.agents.images, "MAX_SENT", 500)
    monkeypatch.setattr(core.agents.images, "MAX_CACHED", 300)
    blobs = [make_blob(Camera().picture(n), "image/png") for n in range(4)]
    refs = [e.Image(blob=b.blob, media_type=b.media_type, size=len(b.data)) for b in blobs]
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        await store.append(swarm, [e.AssistantMessage(agent=root, text="x")], blobs=blobs)
        images = Images(store.reader)
        items = history_of(refs).items
        before = json.dumps(items)
        sent = await images.sendable(items, "m")
        assert json.dumps(items) == before
        left = "text\n[image png 200 B: left out, newer ones are sent]"
        assert [len(i["output"]) if isinstance(i["output"], list) else i["output"] for i in sent[1::2]] == [
            left,
            left,
            2,
            2,
        ]
        assert images._cached == sum(map(len, images._cache.values())) <= 300
        assert await images.sendable(items, "m") == sent
        # A small old one does not slip past a large newer one that is left out.
        large = e.Image(blob=blobs[1].blob, media_type="image/png", size=600)
        sent = await images.sendable(history_of([refs[0], large, refs[2]]).items, "m")
        assert [isinstance(item["output"], list) for item in sent[1::2]] == [False, False, True]


def test_histories_without_images_have_no_marks() -> None:
    history = History("/root")
    history.add(e.ToolCalled(call="c", name="x", arguments="{}"))
    history.add(e.ToolEnded(call="c", output="text"))
    assert not has_marks(history.items)
    assert history.items[-1]["output"] == "text"
    assert has_marks(history_of([e.Image(blob="b", media_type="image/png", size=3)]).items)


# --- one transaction -------------------------------------------------------------------------------------


async def test_a_picture_is_there_when_its_event_is_told(tmp_path: Path) -> None:
    blob = make_blob(b"bytes", "image/png")
    seen: list[Any] = []
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        store.on_commit = lambda *_: seen.append(query(tmp_path, "SELECT blob, data FROM blobs"))
        await store.append(swarm, [e.AssistantMessage(agent=root, text="x")], blobs=[blob])
    assert seen == [[(blob.blob, b"bytes")]]


async def test_an_event_that_cannot_be_written_leaves_no_picture(tmp_path: Path) -> None:
    blob = make_blob(b"bytes", "image/png")
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    async with opened(tmp_path) as store:
        swarm, [root] = await new_swarm(store)
        with pytest.raises(StoreError):
            await store.append(swarm, [e.Reasoning(agent=root, item={"x": deep})], blobs=[blob])
        assert query(tmp_path, "SELECT count(*) FROM blobs") == [(0,)]
        # Others of the same batch keep theirs, with and without an operation beside them.
        await store.append(swarm, [e.AssistantMessage(agent=root, text="x")], blobs=[blob, blob])
        assert query(tmp_path, "SELECT count(*) FROM blobs") == [(1,)]


# --- all the way -----------------------------------------------------------------------------------------


async def test_an_image_of_an_mcp_server_goes_all_the_way(stage: Stage) -> None:
    agents = {"/root": [step(call("docs__image")), step(text="seen")]}
    async with stage.play(agents, **mcp(docs=fake(default_tools_approval_mode="approve"))) as watched:
        await watched.quiet()
        page = await watched.client.page(GetTranscript(swarm=watched.swarm, thread=watched.root))
        transcript = Transcript(watched.root)
        transcript.prepend(page)
    [[text, picture]] = shown(stage.bodies()[-1])
    [ended] = watched.of(e.ToolEnded)
    assert text == "[image png 40 kB]"
    [(raw,)] = query(stage.folder / "home", "SELECT data FROM blobs")
    assert picture == url(raw)
    assert ended.images[0].size == len(raw)
    [row] = [row.call for row in transcript.rows if row.call is not None]
    assert row.summary() == text
