"""Parts of batch jobs that the hub gives to this device: the command ``batch``.

``command`` takes the order and answers it, ``child`` runs ``skerry-agent batch`` as a process of its own, ``courier``
fetches what is to be scored and sends what came out; ``rules.upload`` decides what to send when.
"""
