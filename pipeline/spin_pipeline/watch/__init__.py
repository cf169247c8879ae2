"""A run as it goes on: events to a picture of where it stands, and that picture in a terminal."""
