"""Receive, store and decode uploaded files."""
