"""A Solana cluster of one process: LiteSVM (the real runtime, the real SPL Token program) behind JSON-RPC.

store.py    the journal on disk: what happened, in order; replayed at start
cluster.py  slots, blockhash window, duplicate refusal, commitment levels, faucet
encoding.py values in the shapes that RPC clients expect
rpc.py      the JSON-RPC methods
"""
