"""One file per change of the schema; the number is the order."""
