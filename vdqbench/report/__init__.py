"""From records to tables, overviews and pictures."""
