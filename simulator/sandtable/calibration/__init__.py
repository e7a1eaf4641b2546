"""From measurements to the ``fitted`` block of a device file; nothing is fitted to end-to-end times."""
