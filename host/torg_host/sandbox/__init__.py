"""Runs untrusted programs under bubblewrap. Read in this order:

    images.py    what a container's root is made of: the host's own Python, or an unpacked image
    command.py   the container as bubblewrap's arguments; pure
    launch.py    writes the plan into a state directory and starts the shim
    shim.py      the small process beside each container: logs, deadline, stop, how it ended; outlives whoever started it
    private_root.py, output.py, watch.py   the shim's parts
    container.py a started container seen from outside: wait, stop, logs, remove; needs only the state directory
    oneshot.py   run a program to its end and get what it printed

Whoever starts a container needs `launch` and `container`, or `oneshot` alone. Nothing is imported here, so that the shim
starts quickly.
"""
