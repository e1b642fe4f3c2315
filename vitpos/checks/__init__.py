"""Checks of position schemes: properties that every scheme must have, and the command that tests one scheme."""
