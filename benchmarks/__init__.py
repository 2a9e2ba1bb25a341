"""taskq beside its peers, measured in one run on one machine. `python -m benchmarks --help`; read README.md first."""
