"""What a finished run is judged by: encoders that were not trained here, and the measures."""
