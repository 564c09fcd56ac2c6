"""Boxes: what an evaluation runs in.

An evaluation gets its sources to read, an empty store of its own and a place for its files; nothing else of the
machine, no network, no other process, no environment of the operator's. There are two boxes of equal strength, because
no node offers the means of both: see landlock.py and namespaces.py. Neither is believed to hold before it was attacked
(probe.py).
"""
