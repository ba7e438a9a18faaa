"""Meter, FLOPs, memory and the sinks that records go to."""
