"""`--profile`: where the processes of Modelyard spend their time while a benchmark runs."""
