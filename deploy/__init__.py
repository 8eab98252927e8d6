"""What runs Modelyard: the local stack, images, packaging."""
