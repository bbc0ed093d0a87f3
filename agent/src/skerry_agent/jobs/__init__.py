"""Parts of batch jobs that the hub gives to this device: the command ``batch``.

``command`` takes the order and answers it, ``folders`` keeps what it takes on the disk, ``child`` has it scored by a
process of its own (``scoring``), ``courier`` fetches what is to be scored and sends what came out; ``rules.upload``
decides what to send when.
"""
