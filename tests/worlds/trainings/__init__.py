"""Real trainings of seconds: what they are told, what is done to them, what they leave."""
