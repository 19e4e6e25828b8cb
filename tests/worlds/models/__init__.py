"""Small models, and slow references of what they must compute and hold."""
