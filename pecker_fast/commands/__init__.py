"""The sub-commands of `pecker-fast`, one module each. They parse, call, and print; no maths."""
