"""What a reasoning trace shows: 34 behaviours, who is asked about them, rates, lengths and heat maps."""
