"""The laboratory: what steering does and what it does not do, measured. `steer evaluate` runs it.

Each part measures one question. `parts.py` lists the parts. The order of the results, the commands, the
README's table, RESULTS.md and the page follow from that list.

A package of lrm-steering; `steering.shadowing` looks for this name.
"""
