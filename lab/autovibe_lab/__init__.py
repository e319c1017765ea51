"""An embedded Proxmox VE node with real QEMU guests, and a demo model: for trials and tests."""
