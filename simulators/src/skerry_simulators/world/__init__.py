"""The agent's and the hub's real rules on a virtual clock, network and disk: seeded, replayable, full of faults."""
