"""Handlers as teams have them, ported to svc as they are: three shapes, each with what it writes into a real PostgreSQL."""
