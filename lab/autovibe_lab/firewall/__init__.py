"""The firewall: its files, its rules, and what they do to a packet."""
