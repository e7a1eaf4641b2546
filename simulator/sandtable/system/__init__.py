"""What the operating system gives and takes: whole files, checksums, locks, leftovers, child processes, limits."""
