"""Published sets over the general reader of files, and episodes drawn from published sets."""
