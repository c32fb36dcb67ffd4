"""Defences that every room shares: text cleaning, redaction of secrets. No I/O."""
