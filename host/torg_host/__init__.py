"""What every role does on its own machine: safe archives, bounded disks, control groups, and a sandbox for strangers' programs.

Stands on the protocol alone. Nothing is imported here: the sandbox's shim imports this package and should start quickly.
"""
