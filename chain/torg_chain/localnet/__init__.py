"""A Solana cluster of one process: LiteSVM (the real runtime, the real SPL Token program) behind JSON-RPC.

store.py    the journal on disk: what happened, in order; replayed at start
cluster.py  slots, blockhash window, duplicate refusal, commitment levels, forks, faucet
accounts.py which accounts a transaction names and may change, lookup tables included
undo.py     what is not finalized: how to take it back, and what readers of a level see
faults.py   transactions that get lost, and forks, by number or by chance
encoding.py values in the shapes that RPC clients expect
params.py   what requests carry
rpc.py      the JSON-RPC methods
watches.py  what a subscriber is told, and when
subscriptions.py  the same over WebSocket, one connection per subscriber
"""
