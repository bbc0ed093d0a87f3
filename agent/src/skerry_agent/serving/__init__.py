"""What scores: an HTTP front in the agent process, and one worker process per module version.

The front reads HTTP and forwards bodies unparsed; a worker parses, scores and writes the answer's body. Workers are
forked from one zygote per engine, which has imported the runtime and opened nothing, so that one more costs
milliseconds and a few megabytes. See ``plane`` for the whole, ``frames`` for what crosses the sockets.
"""
