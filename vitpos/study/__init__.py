"""Studies: plan (file to runs), driver (many runs), engines, worker, run (one run to a result), results on disk."""
