"""What the questions share: the run's folder, systems, processes, rounds, figures, the report."""
