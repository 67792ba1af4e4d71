"""What a dictionary has learned, seen from the language model's side: features of a text, and steering."""
