"""The embedded offline model: scenario files (TOML) played back as real Responses bytes, in process and as a
loopback HTTP server, with latency, chunking and faults. No agent, no store, no tool of ours in here."""
