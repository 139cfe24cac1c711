"""What a trained model's answers are worth: temperature, prediction sets, rejection, and its own confusion."""
