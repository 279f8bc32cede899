"""One page of everything below a results folder, that opens from disk: `gather` reads, `data` makes one mapping of it, `page` writes it."""
