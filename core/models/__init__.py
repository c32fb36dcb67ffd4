"""Model clients over httpx: requests out, a stream of typed events back. Retry and time-outs live here."""
