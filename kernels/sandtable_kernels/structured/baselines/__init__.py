"""The structured matrices that a butterfly transform is compared with at equal arithmetic."""
