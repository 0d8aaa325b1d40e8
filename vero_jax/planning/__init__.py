"""What a run needs of machines that are not at hand: its programs compiled for them, and put beside their memory."""
