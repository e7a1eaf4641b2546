"""Questions over many configurations of one scenario."""
