"""The gateway joins what two parties dialled: a job's client and its node, neither of which the other could reach."""
