"""What the dispatcher decides by, and the gateway explains by: pure functions over records."""
