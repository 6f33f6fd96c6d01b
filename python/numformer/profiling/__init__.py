"""What ran, how often, how fast, and how far from the machine's ceiling."""

from numformer.profiling.explain import explain
from numformer.profiling.ranges import range, trace
from numformer.profiling.session import profile

__all__ = ["explain", "profile", "range", "trace"]
