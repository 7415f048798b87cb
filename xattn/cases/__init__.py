"""Small models and texts whose answer is known, made on the spot: what the analyses are held to."""
