"""The controller: projects, machines, checkpoints, money and time, kept in Postgres."""
