"""Direct rental: this node is its own operator, and a client rents it with no marketplace in between.

    api        signed HTTP calls on an address of the owner's choice
    service    every rental of this node: accepted, watched, stopped, paid, closed
    container  one rental's files, disk and container, from start to end
    vaults     what this node checks, captures and agrees to on chain
    book       what must not be forgotten, in the node's journal file

Slots, GPUs and memory come from the host's ledger, where the marketplace's leases stand too.
"""
