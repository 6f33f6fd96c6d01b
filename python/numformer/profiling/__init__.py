"""What ran, how often, how fast, and how far from the machine's ceiling."""

from numformer.profiling.ranges import range, trace
from numformer.profiling.session import profile

__all__ = ["profile", "range", "trace"]
