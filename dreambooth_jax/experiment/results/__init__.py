"""Results of a run: report, advice, export, scores."""
