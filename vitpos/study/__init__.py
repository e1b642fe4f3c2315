"""Studies: plan (file to runs), run (one run to one result), engine (many runs), results on disk."""
