"""Seeded signals of sensors that are not there: the same seed gives the same signal, on every machine.

:mod:`.vibration` is an accelerometer on a rotating machine, :mod:`.images` a camera whose pictures get worse. Pure
numpy; every parameter has its unit in its name or its docstring. They are for training and trying out, not for
deciding about real machines.
"""
