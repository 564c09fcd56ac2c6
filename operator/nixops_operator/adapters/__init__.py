"""Ports carried out on the real thing. The only places, with `cli/`, that import boto3, asyncssh, kubernetes or start
processes."""
