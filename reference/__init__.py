"""Float64 recurrences, one step at a time: what the ops mean. Read these first."""
