"""Pages for people: a status page of the market. The room is here; nothing is in it yet."""
