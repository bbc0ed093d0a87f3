"""Helpers that tests share: real brokers, databases and browsers, started and stopped."""
