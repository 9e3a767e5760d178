"""Which node runs which job: pure, and told everything. `engine` decides, `constraints` say what is possible, `explain` why
nothing is; `fleet` and `order` hold the nodes, `mix` what has been asked for lately, `packing` and `scarcity` what follows."""
