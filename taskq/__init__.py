"""taskq."""
