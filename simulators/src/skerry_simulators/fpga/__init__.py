"""A simulated FPGA board that runs the *unmodified* ``pynq`` package on any machine.

:mod:`~skerry_simulators.fpga.device` is a ``pynq.Device``: stock ``Overlay``, ``allocate`` and the AXI DMA driver run
on it as they do on a PYNQ-Z2. Behind it stand a memory with separate CPU and DRAM images (:mod:`.memory`), the
registers of an AXI DMA engine (:mod:`.dma`) and an accelerator that computes an int8 network in integer arithmetic
(:mod:`.accelerator`) from the weights in the bitstream's payload (:mod:`.network`, :mod:`.overlay`).

What a pass here proves: the driver's calls and their order, cache maintenance, alignment, packing and numerics, to the
bit. What it does not prove: timing, and that a real bitstream computes what its metadata says. ``docs/fpga.md`` says
more.

Import of this package alone does not import ``pynq``.
"""
