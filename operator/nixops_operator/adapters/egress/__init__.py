"""The one point through which the operator fetches over HTTP."""
