"""Benches of fastconv: every answer is checked, then rivals are timed in turn, in one process."""
