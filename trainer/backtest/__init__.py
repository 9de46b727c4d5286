"""The paper's protocol: every method over the same blocks, seeds and users, with tables and plots."""
