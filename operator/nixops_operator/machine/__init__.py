"""The life of one machine, each thing in a module of its own.

desired.py ─► observe.py ── Observed ──► plan.py (CHECKS; deletion.py on the way out) ── Plan ──► apply.py, status.py

launch.py makes its instance, instance.py keeps or replaces it, attributes.py says what each field of the spec means for
it, host.py is the machine over SSH, system.py and activation.py what runs there.
"""
