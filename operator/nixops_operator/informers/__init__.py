"""Shared, cached looks at the world. They never mutate; they wake the keys that a change concerns."""
