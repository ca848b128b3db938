"""What is measured, and how: each module is one benchmark, run by `make bench`, with its result in `bench/results/`."""
