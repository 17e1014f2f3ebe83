"""Drawing and placement behind `visualizing_image.py`: arrays in, pictures out; no models, no command line."""
