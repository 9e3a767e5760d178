"""Job files of other platforms, run as they are: recognised by content, checked strictly, translated to our job spec.

One module per format, each a pure function from the parsed document to a `Translation`: the job file, and a list of what
is `Dropped`, with the reason. Nothing is dropped in silence: `torg submit` refuses what changes the job's meaning unless
it is told otherwise. `docs/reference/importers.md` says what maps to what.
"""
