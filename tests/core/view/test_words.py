"""What faces say: waits, costs, servers, and the budget that an operator types."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain import events as e
from core.domain.apply import apply
from core.domain.state import AgentState, McpServerState, SwarmState
from core.domain.status import Budget, Spending, Usage, Wait
from core.safety.text import is_clean
from core.view import budget, words

NOW = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("wait", "place", "said"),
    [
        (None, None, ""),
        (Wait(reason="slot", line=9), 3, "slot: 3rd in line"),
        (Wait(reason="slot"), None, "slot"),
        (Wait(reason="model", detail="12th in line"), None, "model: 12th in line"),
        (Wait(reason="rate_limit", until=later(12)), None, "rate limit 12s"),
        (Wait(reason="rate_limit", until=later(75), detail="429 slow"), None, "rate limit 1m15s: 429 slow"),
        (Wait(reason="rate_limit", until=later(-3)), None, "rate limit 0s"),
        (Wait(reason="retry", until=later(2), detail="500"), None, "retry in 2s: 500"),
        (Wait(reason="startup", detail="MCP server docs"), None, "start-up: MCP server docs"),
        (Wait(reason="agents", detail="2 of 3 agents"), None, "2 of 3 agents"),
        (Wait(reason="agents", detail="any message"), None, "agents: any message"),
        (Wait(reason="job", detail="job 8e7fc10b, 8 rows"), None, "job 8e7fc10b, 8 rows"),
        (Wait(reason="approval", detail="rm -r\n build"), None, "approval: rm -r build"),
        (Wait(reason="mail"), None, "mail"),
        (
            Wait(reason="budget", detail="limit reached: budget.tokens = 9; 8 are spent"),
            None,
            "budget: tokens = 9; 8 are spent",
        ),
    ],
)
def test_a_wait_is_its_reason_and_its_detail(wait: Wait | None, place: int | None, said: str) -> None:
    assert words.waits_for(wait, place, NOW) == said


@given(st.builds(Wait, reason=st.sampled_from(["slot", "budget", "startup", "retry"]), detail=st.text()))
def test_a_wait_is_always_said_on_one_clean_line(wait: Wait) -> None:
    said = words.waits_for(wait, None, NOW)
    assert said
    assert is_clean(said)
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("spending", "said"),
    [
        (Spending(), ""),
        (Spending(unpriced=1), "n/a"),
        (Spending(unmetered=900), "n/a"),
        (Spending(dollars=2.1, priced=3), "$2.10"),
        (Spending(dollars=2.1, priced=3, unpriced=1), "$2.10+"),
        (Spending(dollars=2.1, priced=3, unmetered=10), "$2.10+"),
        (Spending(dollars=0.0001, priced=1), "<$0.01"),
        (Spending(dollars=0.0, priced=1), "$0.00"),
        (Spending(dollars=12_345, priced=1), "$12.3k"),
    ],
)
def test_a_cost_that_nobody_knows_is_never_nothing(spending: Spending, said: str) -> None:
    assert words.cost(spending) == said


@given(st.floats(0, 1e9))
def test_dollars_fit_their_column_and_are_zero_only_for_nothing(amount: float) -> None:
    shown = words.dollars(amount)
    assert len(shown) <= 7
    assert (shown == "$0.00") == (amount == 0)


def test_a_start_up_that_failed_says_so() -> None:
    agent = AgentState(thread="t", path="/root/a", nickname="a", status="errored", status_message="no shop")
    assert words.outcome(agent) == "start-up: no shop"
    ran = AgentState(
        thread="t", path="/root/a", nickname="a", status="errored", status_message="no shop", turns=1
    )
    assert words.outcome(ran) == "no shop"


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (McpServerState(server="docs", status="ready", tools=12, seconds=0.82), "docs ready 12 tools 0.8s"),
        (McpServerState(server="docs", status="ready", tools=1, seconds=0.82), "docs ready 1 tool 0.8s"),
        (McpServerState(server="d\x1b[31m", status="failed", detail="no\nsuch"), "d failed: no such"),
        (McpServerState(server="docs", status="starting"), "docs starting"),
    ],
)
def test_a_server_is_said_on_one_line(server: McpServerState, said: str) -> None:
    assert words.server(server) == said


# --- the budget --------------------------------------------------------------------------------------------


def spent(budget_: Budget, *events: e.Event) -> SwarmState:
    state = SwarmState(swarm="s")
    for name in ("root", "b"):
        path = "/root" if name == "root" else f"/root/{name}"
        apply(state, e.AgentSpawned(agent=name, path=path, nickname=name))
    apply(state, e.BudgetSet(budget=budget_, by="operator"))
    for event in events:
        apply(state, event)
    return state


def used(agent: str, total: int, cost: float | None = None) -> e.Event:
    return e.ResponseCompleted(agent=agent, response="r", usage=Usage(total=total), cost=cost)


def test_each_limit_says_what_is_used_and_tokens_that_nobody_told_count() -> None:
    limits = Budget(tokens=1000, cost=2.0, per_agent_tokens=500, per_agent_cost=1.5)
    state = spent(
        limits, used("root", 100, 0.5), used("b", 300, 1.0), e.UsageUnknown(agent="b", tokens=50, cost=0.1)
    )
    assert [limit.words() for limit in budget.limits(state)] == [
        "450 of 1,000 tokens used",
        "$1.60 of $2.00 used",
        "350 of 500 tokens used by one agent",
        "$1.10 of $1.50 used by one agent",
    ]
    binds = budget.binding(state)
    assert binds is not None
    assert (binds.kind, binds.proposal()) == ("cost", "$3.00")


def test_the_limit_that_an_agent_names_is_the_one_to_raise() -> None:
    detail = "limit reached: budget.per_agent_tokens = 500; root has spent 90, and its next request needs 600"
    waits = [
        e.AgentWaits(agent="root", wait=Wait(reason="budget", detail=detail)),
        e.AgentWaits(agent="b", wait=Wait(reason="budget", detail="in line: other requests hold it")),
    ]
    state = spent(Budget(tokens=100, per_agent_tokens=500), used("root", 90), *waits)
    assert [agent.thread for agent in budget.waiting(state)] == ["root"]
    binds = budget.binding(state)
    assert binds is not None
    assert (binds.kind, binds.words()) == ("per_agent_tokens", "90 of 500 tokens used by one agent")
    assert binds.proposal() == "750"


def test_a_proposal_is_enough_for_the_request_that_waits() -> None:
    detail = "limit reached: budget.{}; 90 are spent, and its next request needs at least {}"
    for kind, needs, typed in (("tokens", "1,200", "1.29k"), ("cost", "$7.2511", "$7.76")):
        limits = Budget(tokens=100, cost=1.0)
        wait = Wait(reason="budget", detail=detail.format(f"{kind} = 100", needs))
        state = spent(limits, used("root", 90, 0.5), e.AgentWaits(agent="root", wait=wait))
        binds = budget.binding(state)
        assert binds is not None
        assert (binds.kind, binds.proposal()) == (kind, typed)


def test_what_the_engine_says_of_a_spent_budget_names_the_limit_to_raise() -> None:
    from core.agents.budget import HELD, Need, _Limit
    from core.models.prices import ModelEntry

    assert not budget.stopped(waiting_agent(HELD))
    limit = _Limit(
        name="tokens", total=9000, spent=8000, held=0, given=2000, rate=1, money=False, shared=True
    )
    need = Need(thread="root", given=2000, answer=4096, least=1024, model="m", entry=ModelEntry())
    said = Wait(reason="budget", detail=limit.spent_text(need, "root"))
    state = spent(Budget(tokens=9000), used("root", 8000), e.AgentWaits(agent="root", wait=said))
    assert budget.stopped(state.agents["root"])
    binds = budget.binding(state)
    assert binds is not None
    assert (binds.kind, binds.needed) == ("tokens", 3024)
    assert words.waits_for(said, None, NOW).startswith("budget: tokens = 9,000; 8,000 are spent")


def waiting_agent(detail: str) -> AgentState:
    return AgentState(thread="t", path="/root", nickname="r", wait=Wait(reason="budget", detail=detail))


def test_without_a_budget_nothing_binds() -> None:
    assert budget.binding(spent(Budget(), used("root", 5))) is None


TOKENS = budget.Limit("tokens", 10, 10)
COST = budget.Limit("cost", 1, 1)
EACH = budget.Limit("per_agent_tokens", 10, 10)


@pytest.mark.parametrize(
    ("text", "binds", "wanted"),
    [
        ("1.5M", TOKENS, ("tokens", 1_500_000)),
        (" 200K tokens ", None, ("tokens", 200_000)),
        ("1,500,000", TOKENS, ("tokens", 1_500_000)),
        ("750", COST, ("cost", 750)),
        ("$7.50", TOKENS, ("cost", 7.5)),
        ("7.5 dollars", TOKENS, ("cost", 7.5)),
        ("$.50", None, ("cost", 0.5)),
        ("90k", EACH, ("per_agent_tokens", 90_000)),
        ("$2", EACH, ("cost", 2)),
        ("agent 50k", TOKENS, ("per_agent_tokens", 50_000)),
        ("per agent $2", None, ("per_agent_cost", 2)),
        ("0", TOKENS, ("tokens", 0)),
        ("1.1k", None, ("tokens", 1100)),
    ],
)
def test_a_typed_limit_is_understood(
    text: str, binds: budget.Limit | None, wanted: tuple[str, float]
) -> None:
    assert tuple(budget.parse(text, binds)) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "much", "-5", "1,5M", "1.5.0", "1e9", "12 34", "$5 tokens", "0.5", "9999999999M", "٣", "1\n2"],
)
def test_a_limit_that_is_not_clear_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="token") as refused:
        budget.parse(text, None)
    assert len(str(refused.value).splitlines()) == 1


@given(st.integers(1, 10**12), st.integers(0, 10**12), st.booleans())
def test_what_is_proposed_is_understood_and_is_more(limit: int, spent: int, money: bool) -> None:
    bound = budget.Limit("cost" if money else "tokens", spent / 100 if money else spent, limit)
    try:
        wanted = budget.parse(bound.proposal(), bound)
    except ValueError:
        assert max(limit, spent) * 1.5 > budget.MAX_DOLLARS
        return
    assert wanted.kind == bound.kind
    assert wanted.value >= 1.5 * max(bound.limit, bound.used) - 1e-6
    sent = wanted.command("s")
    assert (sent.cost if money else sent.tokens) == wanted.value
