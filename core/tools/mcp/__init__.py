"""Tools of MCP servers. Only `client` and `http` import the `mcp` package: it costs two seconds, so a thread
imports them when the first server starts.
"""
