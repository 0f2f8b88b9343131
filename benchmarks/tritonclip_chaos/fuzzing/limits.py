"""What one input may cost."""

# Seconds of CPU.
MOST_CPU_S = 2.0
