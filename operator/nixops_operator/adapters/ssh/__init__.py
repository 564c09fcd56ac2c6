"""Machines through asyncssh, and the agent script that works on them."""
