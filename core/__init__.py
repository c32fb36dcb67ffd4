"""Watchroom's engine: a durable asyncio runtime for swarms of LLM agents. It never imports the console."""
