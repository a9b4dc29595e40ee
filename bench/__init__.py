"""Gate, timing, records, tuning and the command line: knows no op and no DSL by name."""
