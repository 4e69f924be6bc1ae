"""How much of its accuracy a model keeps on pictures that are noisy, blurred, snowed upon, or changed to deceive it."""
