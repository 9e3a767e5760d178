"""Proof of hardware: exact integer work that a prover does in full and a verifier repeats in part.

    arithmetic.py  the numbers: seeded entries, the product, the narrowing, digests; the NumPy path, which every other path must equal
    chain.py       a chain of matrix products whose rows do not depend on each other: the verifier replays a few of them
    walk.py        memory filled with rows that mix, then read along paths that only their content tells
    opening.py     the commitment to row digests, and openings of it

Nothing here looks at a clock. Sources: integers below 2^24 are exact in float32 (IEEE 754), so products of int8 are summed in blocks of 1024
columns (1024 * 127^2 < 2^24), whatever the device; mixing of 32-bit words: C. Wellons, "lowbias32".
"""
