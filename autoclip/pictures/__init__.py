"""Pictures of a page or a file: their size, type and colours, and names that cover nothing."""
