"""The audit as a swarm with prices, a budget that stops an agent, MCP servers and a start-up that failed."""

from __future__ import annotations

from core.domain import events as e
from core.domain.status import Budget, Usage, Wait
from tests.tui.story import Story, audit, thread

ROOT, ATLAS, EMBER, GROVE, KITE = thread(1), thread(2), thread(3), thread(8), thread(11)
MANGO = thread(12)
SPENT = (
    "limit reached: budget.tokens = 400,000; 318,300 are spent, and its next request needs at least 90,000"
)
SUMMARY = "The audit is split by module.\n\natlas maps the repo.\nheron failed."


def priced(agent: str, total: int, cost: float) -> e.ResponseCompleted:
    usage = Usage(input=total - 100, output=100, total=total)
    return e.ResponseCompleted(agent=agent, response="r", usage=usage, cost=cost)


def stopped() -> Story:
    s = audit()
    s.add(priced(ROOT, 75_000, 0.9))
    s.add(priced(ATLAS, 44_000, 0.41))
    s.add(priced(thread(7), 18_000, 0.15))
    s.add(e.McpServerChanged(server="docs", status="ready", tools=12, seconds=0.8))
    s.add(e.McpServerChanged(server="shop", status="failed", detail="no such command: shop-mcp"))
    s.add(e.BudgetSet(budget=Budget(tokens=400_000, per_agent_cost=2.0), by="operator"))
    s.add(e.AgentWaits(agent=ATLAS, wait=Wait(reason="budget", detail=SPENT)))
    s.add(e.AgentWaits(agent=GROVE, wait=Wait(reason="model", detail="12th in line")))
    s.names[MANGO] = "/root/mango"
    born = e.AgentSpawned(
        agent=MANGO, path="/root/mango", nickname="mango", parent=ROOT, depth=1, task="search the docs"
    )
    s.add(born)
    s.add(e.AgentFailed(agent=MANGO, error="shop: no such command: shop-mcp"))
    s.add(e.HistoryCompacted(agent=ROOT, summary=SUMMARY, tokens=181_000))
    return s
