"""Statistics, figures and reports; reads rows of results, trains nothing."""
