"""``skerry-agent batch``: score a table or a folder of files on this device, resumably, behind live traffic.

It runs as a process of its own that talks to the agent as any client does, with low priority: the agent's process
never sees the data, and numpy and pyarrow cost it nothing. Only ``skerry_agent.cli`` may import this package, and only
for this command; a test holds that.

``tables`` reads, ``scoring`` asks, ``parts`` keeps what is done, ``job`` wires them; ``rules.pace`` decides how fast.
"""
