"""Calibration of a trained model: temperature, prediction sets, rejection and confusion."""
