"""What every process of Modelyard has: tasks, shutdown, logging, settings, helper processes."""
