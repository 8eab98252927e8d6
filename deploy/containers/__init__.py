"""Modelyard in containers: its images, their tests, a demonstration of deploy/compose.yaml."""
