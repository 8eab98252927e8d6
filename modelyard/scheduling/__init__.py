"""What the dispatcher decides by, and the gateway explains by. Pure, but for `reading`."""
