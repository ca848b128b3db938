"""What is pure of chaos: faults as data, the schedule, what a stream must say, the verdict."""
