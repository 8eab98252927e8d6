"""What was learned of the capacity that models need."""
