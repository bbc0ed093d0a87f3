"""Thousands of light devices in one process, over real MQTT against a real hub.

Each has its own connection, hello, presence, state, telemetry and health, keeps what it sends until the hub has
acknowledged it, downloads what it should run chunk by chunk, checks every digest, and reports the lifecycle. What is
light: nothing is installed or scored; telemetry is made up from a seed. The agent itself is not used, so that a
thousand fit into one process; the real one is exercised by ``world`` and the demo.
"""
