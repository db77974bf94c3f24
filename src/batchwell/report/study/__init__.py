"""The page of a study: results to numbers, numbers to figures, tables and words."""
