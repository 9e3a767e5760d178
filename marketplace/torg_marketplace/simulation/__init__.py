"""A whole market under virtual time: the real rules, flows, matcher and tables, and around them nodes, clients and a chain that
do everything that real ones do on a bad day. Everything that happens comes from one seed.

world        clock, chance, blobs, links, evaluator, an SQLite in memory: what the flows are given
chain        vaults with forks, late, lost and doubled transactions
node, client the parties, and what is true about what they did
plan         a seed becomes a list of steps; any part of the list is a list that can be run too
run          runs the steps, checks the invariants after each, winds down, and shrinks what failed
invariants   what must hold, read from the tables, from the chain and from the parties' own books
"""
