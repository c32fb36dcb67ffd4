"""SQLite through aiosqlite: migrations, the journal (one writer, group commit), readers, job and mail tables.

All SQL of the product is here. The room knows no agent, no model and no tool.
"""
