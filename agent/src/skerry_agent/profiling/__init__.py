"""Measures what a module costs on this machine, in worker processes of the data plane's own kind.

``measure`` runs inside such a worker; ``session`` starts workers, one for each engine and number of threads, and
gathers what they found; ``command`` does it when the hub asks, ``local`` for ``skerry-agent profile``. What to measure
and what follows from it are rules: ``rules/profile_plan.py`` and ``rules/recommend.py``.
"""
