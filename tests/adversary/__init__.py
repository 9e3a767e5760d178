"""Cheats against proofs of hardware, each with the rate at which it is noticed, and honest machines with the rate at which they suffer.

`python -m tests.adversary [--trials N]` prints the table of docs/explanation/verification.md. Answers are really computed and really judged;
how long they took is SIMULATED, so that the table is the same on every machine.
"""
