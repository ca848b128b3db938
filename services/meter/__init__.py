"""The meter: books every token once, at its price and its costs, and answers who used what."""
