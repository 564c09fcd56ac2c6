"""What machines share, and the machines themselves, each in a module with its looks, checks and steps together.

desired.py ─► observe.py ── Observed ──► plan.py (CHECKS; deletion.py on the way out) ── Plan ──► apply.py, status.py
"""
