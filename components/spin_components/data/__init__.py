"""Training data: source formats, records, chat rendering, the Parquet files between steps, and collation."""
