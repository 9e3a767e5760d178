"""The story of a job, one module per verb:

    quote -> submit -> match -> grant -> (the node executes) -> lease_events -> report -> verify -> settle
              hold      pure     lease                            usage          ending     verdict   capture

Each does the same three things: load, ask a pure rule (`torg_marketplace.rules`, `torg_marketplace.matching`), apply. What
interrupts the story: `cancel` (the client), `nodes` (they come, go and come back), `liveness` (time passes). How a lease ends
is decided in one place, `ending`. Nothing here commits: see `unit`.
"""
