"""Which node runs which job: pure functions over snapshots. `constraints` says what is possible, `choose` what is best,
`explain` why nothing is."""
