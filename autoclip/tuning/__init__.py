"""Said of norms that exist already: replay of a policy, a suggestion for a log."""
