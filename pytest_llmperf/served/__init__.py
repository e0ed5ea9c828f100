"""Clients of servers: one request and its stream, a batch of them, what a server says of itself, one that we start."""
