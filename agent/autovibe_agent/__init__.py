"""What runs inside a machine: one module per agent type on one base. Standard library only."""
