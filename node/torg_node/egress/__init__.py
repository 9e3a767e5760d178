"""A job's way out: a proxy beside its container, which has no route of its own. See docs/explanation/egress.md."""
