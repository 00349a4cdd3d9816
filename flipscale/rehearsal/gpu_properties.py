"""What libraries ask about a GPU, answered for the one of a rehearsal: an H100."""

from __future__ import annotations

from types import SimpleNamespace

CAPABILITY = (9, 0)
"""Its compute capability."""

PROPERTIES = SimpleNamespace(
    name="a GPU of a rehearsal",
    gcnArchName="",
    total_memory=80 * 2**30,
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    warp_size=32,
)
"""`torch.cuda.get_device_properties`; the compiler chooses by it how to split a reduction."""
