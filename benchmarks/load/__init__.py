"""A load generator that speaks the real protocols: signed HTTP submissions in open loop, and nodes that hold channels and play out leases."""
