"""The page of a real training: its log to series, series to figures, tables and words."""
